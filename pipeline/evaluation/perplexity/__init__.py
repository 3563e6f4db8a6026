"""Where thinking helps: the loss of every token of held-out text, with thoughts and without."""
