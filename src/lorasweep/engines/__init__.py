"""What trains a trial. ``trainer`` is the reference."""

import logging

# On import bitsandbytes warns of faster CPU kernels that could be fetched from a hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
