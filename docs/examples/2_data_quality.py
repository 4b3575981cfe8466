"""
Data quality of a frame
=======================

What the flags of a frame are after ``add_dq``, for one array.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import gdask
from gdask import dataselect, plot, steps

files = sorted(str(path) for path in Path("night/raw").glob("*.fits"))
science = dataselect.select_data(
    files, [], [], dataselect.expr_parser('observation_class=="science" and exposure_time==60.')
)
mask = gdask.open(dataselect.select_data(files, ["BPM"])[0])

frames = steps.prepare(gdask.open_many(science), bad_wcs="fix")
frames = steps.add_dq(frames, (mask,) * len(frames))

# %%
# Nothing has been computed so far. The line below computes one array of one frame.

flags = frames[0].dq.isel(detector=1).compute().data
bits = {1: "bad pixel", 2: "non-linear", 4: "saturated", 8: "latent image", 16: "no data"}
for bit, name in bits.items():
    print(f"{name:<13} {np.count_nonzero(flags & bit):6d} pixels")

# %%
# The same flags in colours over the pixels.

figure = plt.figure(figsize=(7, 6), layout="constrained")
axes = figure.add_subplot(projection=gdask.wcs(frames[0])[1])
plot.image(frames[0], axes, array=2)
plot.dq(frames[0], axes, array=2)
plt.show()
