"""`dvc repro` killed at random moments, and what comes out compared with a run that was left in peace."""
