"""The folders of base and trained models."""
