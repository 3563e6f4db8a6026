"""Zero-shot questions, answered without visible reasoning."""
