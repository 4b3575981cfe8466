"""Kernels of the sky: levels that agree between frames, and targets that fill the field."""
