"""Bases: where they come from, at which precision, and what is trained on them."""

import logging

# On some processors bitsandbytes warns, whenever it is imported, that it has no faster kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
