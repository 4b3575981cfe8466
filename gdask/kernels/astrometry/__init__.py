"""Kernels of astrometry: matching stars and solving all frames together."""
