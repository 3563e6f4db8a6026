"""Zero-shot questions, with thoughts and without, and by the model before training."""
