"""From documents to spans of token ids, and the tokenizer that does it."""
