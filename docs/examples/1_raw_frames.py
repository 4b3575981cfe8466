"""
Raw frames
==========

A simulated night of GSAOI, as the archive would deliver it, and what is on the four arrays.
"""

# %%
# Simulate a small night
# ----------------------
#
# 320 x 320 pixels of each of the four arrays, some flats, three frames on the target and three on
# an empty field. ``night/raw`` has the raw files, ``night/truth`` what is true about them. The same
# as a command: ``gdask simulate gsaoi night --size 320 --n-flats 3 --n-science 3 --n-sky 3``.

from pathlib import Path

from gdask.simulate import simulate_gsaoi

if not Path("night").is_dir():
    simulate_gsaoi("night", size=320, n_flats=3, n_science=3, n_sky=3, n_std=1)
files = sorted(str(path) for path in Path("night/raw").glob("*.fits"))
print(len(files), "files")

# %%
# Choose by header
# ----------------
#
# Tags say what a file is, expressions look at descriptors. No pixel is read for this.

from gdask import dataselect

science = dataselect.select_data(
    files, [], [], dataselect.expr_parser('observation_class=="science" and exposure_time==60.')
)
print(*science, sep="\n")

# %%
# Look
# ----
#
# ``gdask.open`` gives a lazy Frame, an ``xarray.Dataset`` with the dimensions (detector, y, x).
# ``gdask.plot`` draws files and Frames on axes of matplotlib: all arrays as they were read, and one
# of them with its sky coordinates.

import matplotlib.pyplot as plt

import gdask
from gdask import plot

frame = gdask.open(science[0])
figure = plt.figure(figsize=(11, 5), layout="constrained")
plot.arrays(frame, figure.add_subplot(1, 2, 1), on_sky=False)
plot.image(frame, figure.add_subplot(1, 2, 2, projection=gdask.wcs(frame)[1]), array=2)
plt.show()
