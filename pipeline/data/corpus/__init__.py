"""Documents to learn from and questions, made from a seed or taken from the hub."""
