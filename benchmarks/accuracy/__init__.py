"""Measurements of stacks against the truth of simulated nights.

python -m benchmarks.accuracy                simulate, reduce and measure nights: the scoreboard
python -m benchmarks.accuracy --engines      one night with each resampling engine and interpolation
python -m benchmarks.accuracy.interpolation  interpolation kernels on stars of known image
python -m benchmarks.accuracy.truth          one stack: completeness, positions, fluxes, sky steps
python -m benchmarks.accuracy.background     one stack: unevenness of its background
"""
