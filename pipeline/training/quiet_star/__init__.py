"""Quiet-STaR training: from a base model and spans of text to a model that thinks."""
