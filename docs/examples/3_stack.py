"""
From raw frames to a stack
==========================

The commands of the tutorial, from Python, and what comes out: the image, its noise and its
catalogue, beside the truth.
"""

from pathlib import Path

import gdask
from gdask import cal_service, dataselect

files = sorted(str(path) for path in Path("night/raw").glob("*.fits"))
flats = dataselect.select_data(files, ["FLAT"], [], dataselect.expr_parser('filter_name=="Kshort"'))
science = dataselect.select_data(
    files, [], [], dataselect.expr_parser('observation_class=="science" and exposure_time==60.')
)

caldb = cal_service.set_local_database()
caldb.init()
caldb.add_cal(dataselect.select_data(files, ["BPM"])[0])

# %%
# The flat, and then the target. The flat is found by itself.

for inputs in (flats, science):
    reduction = gdask.Reduce()
    reduction.files.extend(inputs)
    if inputs is science:
        reduction.uparms["prepare:bad_wcs"] = "fix"
        reduction.uparms["skyCorrect:offset_sky"] = False
    reduction.runr()
print(reduction.output_filenames)

# %%
# The image
# ---------
#
# Electrons, North up, East left. Sources of its catalogue are circled where they are bright.

import matplotlib.pyplot as plt
import numpy as np
from astropy.visualization import AsinhStretch, ImageNormalize

image = gdask.open(reduction.output_filenames[-1])
catalogue = gdask.tables(image)["OBJCAT"][0]
data = np.where(image.dq.data[0].compute() & 16, np.nan, image.data.data[0].compute())
low, high = np.nanpercentile(data, (2, 99.8))

figure, axis = plt.subplots(
    figsize=(7, 7), layout="constrained", subplot_kw={"projection": gdask.wcs(image)[0]}
)
norm = ImageNormalize(vmin=low, vmax=high, stretch=AsinhStretch(0.05))
axis.imshow(data, origin="lower", cmap="gray", norm=norm)
bright = catalogue[np.argsort(catalogue["FLUX_PSF"])[-40:]]
axis.scatter(
    bright["XPSF_IMAGE"] - 1, bright["YPSF_IMAGE"] - 1, s=60, facecolors="none", edgecolors="orange"
)
axis.set(xlabel="RA", ylabel="Dec", title=reduction.output_filenames[-1])
plt.show()

# %%
# Its numbers
# -----------
#
# The primary header has the numbers by which a product is judged.

from gdask.headers.numbers import read_numbers

numbers = read_numbers(reduction.output_filenames[-1])
for name in ("fwhm", "noise_ratio", "astrometric_rms", "frames", "gates"):
    print(f"{name:<16} {numbers.get(name)}")
