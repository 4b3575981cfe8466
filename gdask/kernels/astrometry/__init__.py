"""Astrometry of all frames of a target in one solution, from measured stars to positions by epoch.

The modules in the order in which they are best read, which is that of their imports:

- `measured_stars`: the sources of each frame in one common plane, and the terms that displace them;
- `association`: which source of one list is which of another, and which source is which star;
- `joint_fit`: all stars and frames in one least-squares fit, and its tie to a reference catalogue;
- `groups`: detector defects, and which frames share stars and hang together by them;
- `few_stars`: frames that show too few stars to be recognised by a pattern;
- `residuals`: what the fit leaves: weights, displaced detector arrays, positions epoch by epoch;
- `placing`: places of sparse frames, and of groups of frames that share no stars;
- `solution`: the passes of association and fit in their order, and what is given out.
"""
