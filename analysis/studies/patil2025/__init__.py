"""Patil, Khot and Gudivada 2025: LLaMA3-8B, five-class sentiment."""
