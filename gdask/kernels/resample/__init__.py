"""Kernels that resample arrays onto the grid of the output."""
