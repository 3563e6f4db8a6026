"""Presets: groups of parameters for `dvc exp run`."""
