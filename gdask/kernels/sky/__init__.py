"""Kernels of the sky background."""
