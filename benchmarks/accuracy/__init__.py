"""The scoreboard: simulated nights, reduced with the real commands, measured against their truth.

python -m benchmarks.accuracy [--size full|small] [--only NAME] [--out DIR]
"""
