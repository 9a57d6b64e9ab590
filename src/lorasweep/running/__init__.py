"""Plan a request, show it, run it: the sweep loop and what surrounds it."""
