"""The benchmark of the thought engine; run as `python -m pipeline.bench`."""
