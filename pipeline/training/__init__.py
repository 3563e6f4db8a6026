"""Pretraining and Quiet-STaR training, resumable at any step."""
