"""Kernels of sources: background, detection, star fits, photometry."""
