"""What is trained: adapters, a head, or all weights."""
