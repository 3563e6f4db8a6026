"""`dvc repro` killed at random moments, and its outputs compared with those of an uninterrupted run."""
