"""What the model reads and is asked."""
