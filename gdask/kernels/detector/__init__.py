"""Kernels of the detector: data quality, linearity, variance, flat field, probe shadows."""
