"""What a run will take, before anything runs: `python -m pipeline.plan`."""
