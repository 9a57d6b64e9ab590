"""Where packs run: in this process, or in worker processes with a device each."""
