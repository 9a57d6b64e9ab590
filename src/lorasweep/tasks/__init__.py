"""Tasks: text to examples, tokens and metrics."""
