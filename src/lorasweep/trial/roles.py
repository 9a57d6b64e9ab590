"""The roles that linear layers play in a transformer block."""

NAMES = ("query", "key", "value", "output", "gate", "up", "down")
