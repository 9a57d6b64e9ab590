"""Bases: where they come from, at which precision, and what is trained on them."""
