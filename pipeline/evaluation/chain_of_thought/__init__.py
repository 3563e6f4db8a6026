"""cot-maj@k: sample visible reasoning k times, and take the majority of the k answers."""
