"""Sweeps of LoRA, QLoRA and their relatives: one command line, one record, one report."""

__version__ = "0.1.0"
