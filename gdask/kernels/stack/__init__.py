"""Kernels that combine frames."""
