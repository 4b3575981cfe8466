"""How the time and the memory of a reduction grow with frames and workers."""
