"""cot-maj@k: visible reasoning is sampled, and the majority of k answers counts."""
