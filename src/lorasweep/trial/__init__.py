"""Trials: one configuration each, its key, and its result."""
