"""Does thinking help? Questions, visible reasoning, per-token loss, and how sure we are."""
