"""The tokenizer, and the stage that cuts texts into spans of its tokens."""
