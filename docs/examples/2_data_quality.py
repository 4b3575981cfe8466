"""
Data quality of a frame
=======================

What the flags of a frame are after ``add_dq``, for one array.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import gdask
from gdask import dataselect, steps

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

figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
shown = np.where(flags > 0, np.log2(np.maximum(flags, 1)), np.nan)
picture = axis.imshow(shown, origin="lower", cmap="viridis", interpolation="nearest")
axis.set(title=f"{frames[0].attrs['name']}, array 2", xlabel="x (pixel)", ylabel="y (pixel)")
figure.colorbar(picture, label="highest bit that is set")
plt.show()
