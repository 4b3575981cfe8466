"""Astrometry of all frames of a target in one solution, from measured stars to positions by epoch.

The modules in the order in which they are best read, which is that of their imports:

- `measured_stars`: the sources of each frame in one common plane, and the terms that displace them;
- `association`: which source of one list is which of another, and which source is which star;
- `few_stars`: detector defects, and frames that show too few stars to be recognised by a pattern;
- `joint_fit`: all stars and frames in one least-squares fit, and its tie to a reference catalogue;
- `residuals`: what the fit leaves: weights, displaced detector arrays, positions epoch by epoch;
- `solution`: the passes of association and fit in their order, and what is given out.
"""
