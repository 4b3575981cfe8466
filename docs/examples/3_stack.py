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
# Electrons, North up, East left, with rings around the sources of its catalogue.

import matplotlib.pyplot as plt

from gdask import plot

image = gdask.open(reduction.output_filenames[-1])
figure = plt.figure(figsize=(8, 7), layout="constrained")
axes = figure.add_subplot(projection=gdask.wcs(image)[0])
plot.image(image, axes)
plot.catalog(image, axes)
plt.show()

# %%
# Is the noise what VAR says? Where do the stars of single frames lie about their means?

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
plot.noise(image, left)
plot.residuals(image, right)
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
