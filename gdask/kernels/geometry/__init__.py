"""Kernels of geometry: array pixels, sky, the grid of the output, and their headers."""
