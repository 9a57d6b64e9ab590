"""The LLaMA 2 guide: which GPU is needed, and how time grows with data."""
