"""Interpolation kernels on stars whose resampled image is known.

    python -m benchmarks.accuracy.interpolation

Each star is rendered on an array of 0.0197 arcsec and, as the answer, on the output of
0.02 arcsec, at many phases. What differs between the resampled image and the answer is the
kernel's doing.
"""

from __future__ import annotations

import numpy as np

from benchmarks.accuracy.report import table_lines
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import TAPS, aperture_noise, noise_correlation
from gdask.kernels.resample.resampling import resample
from gdask.simulate.rendering import PSF, Moffat, profile_table, render
from gdask.types import Image

#: FWHM of the core in input pixels: GSAOI Kshort and J at good Strehl ratio; FLAMINGOS-2 in good
#: seeing has 2.5.
STARS: dict[str, PSF] = {
    "core of 4.2 pixels": (Moffat(0.42, 0.083, 4), Moffat(0.58, 0.45, 3)),
    "core of 2.5 pixels": (Moffat(0.3, 0.050, 4), Moffat(0.7, 0.45, 3)),
}
#: Arcsec per pixel.
INPUT_SCALE, OUTPUT_SCALE = 0.0197, 0.02
RATIO = OUTPUT_SCALE / INPUT_SCALE
#: Random phases of a star; side (input pixels) of its image; output pixels that are left out at
#: the image's edge, on either side.
PHASES, BOX, EDGE = 96, 60, 4
#: Side (pixels) of the output.
OUTPUT_SIZE = int(BOX * INPUT_SCALE / OUTPUT_SCALE) - 2 * EDGE
#: Radii (output pixels) of the window of centroids (sigma), of the aperture of fluxes, and of that
#: of noise.
CENTROID_SIGMA, FLUX_APERTURE, NOISE_APERTURE = 2.0, 12.0, 3.0
#: Frames that are combined.
DITHERS = 9
#: The mean of resampled frames, and pixfracs of drizzle (Fruchter & Hook 2002).
COMBINATIONS: dict[str, float | None] = {
    "quintic, mean": None,
    "drizzle 1.0": 1.0,
    "drizzle 0.7": 0.7,
    "drizzle 0.4": 0.4,
}


def kernel_figures() -> dict[str, dict[str, dict[str, float]]]:
    """Figures by star and kernel.

    Centroid rms and worst (mas), flux mean and peak to peak over phases (%), noise, cosmic rays.
    """
    return {
        name: {kernel: star_figures(psf, kernel) | _noise(kernel) for kernel in TAPS}
        for name, psf in STARS.items()
    }


def star_figures(psf: PSF, kernel: str) -> dict[str, float]:
    """Centroids, fluxes and peaks of one star through one kernel."""
    rng, half = np.random.default_rng(1), BOX // 2
    differences = []
    # Phases of the star in its pixel (px, py), and of output among input pixels (qx, qy).
    for px, py, qx, qy in rng.uniform(-0.5, 0.5, (PHASES, 4)):
        raw = star_image(psf, half * 1.0 + px, half * 1.0 + py, INPUT_SCALE, BOX + 1)
        resampled = _resampled(raw, qx, qy, kernel)
        x, y = (_output_place(half + p - q) for p, q in ((px, qx), (py, qy)))
        differences.append(_difference(resampled, psf, x, y))
    return _summary(differences)


def _output_place(place: float) -> float:
    """Output pixel of an input pixel."""
    return place * INPUT_SCALE / OUTPUT_SCALE - EDGE


def _resampled(raw: Image, qx: float, qy: float, kernel: str) -> Image:
    """A frame on the output's pixels, which are at phases (qx, qy) among the input's."""
    grid = np.arange(OUTPUT_SIZE) + float(EDGE)
    places = grid * OUTPUT_SCALE / INPUT_SCALE
    xmap, ymap = np.meshgrid(places + qx, places + qy)
    flags = np.zeros(raw.shape, np.uint16)
    return resample(
        raw, np.ones_like(raw), flags, ymap, xmap, interpolation=kernel, area_ratio=RATIO**2
    )[0]


def _difference(image: Image | Floats, psf: PSF, x: float, y: float) -> tuple[Floats, float, float]:
    """Shift of the centroid (pixels), relative error of the flux and of the peak."""
    true = star_image(psf, x, y, OUTPUT_SCALE, OUTPUT_SIZE)
    grid = np.arange(OUTPUT_SIZE)
    disk = np.clip(FLUX_APERTURE + 0.5 - np.hypot(*np.meshgrid(grid - x, grid - y)), 0, 1)
    shift = _centroid(image, x, y) - _centroid(true, x, y)
    flux = (image * disk).sum() / (true * disk).sum() - 1
    return shift, flux, image.max() / true.max() - 1


def _summary(differences: list[tuple[Floats, float, float]]) -> dict[str, float]:
    shifts, fluxes, peaks = zip(*differences, strict=True)
    mas = np.array(shifts) * OUTPUT_SCALE * 1000
    return {
        "centroid_rms_mas": float(np.sqrt(np.mean(mas**2))),
        "centroid_worst_mas": float(np.abs(mas).max()),
        "flux_bias_percent": 100 * float(np.mean(fluxes)),
        "flux_range_percent": 100 * float(np.ptp(fluxes)),
        "peak_bias_percent": 100 * float(np.mean(peaks)),
    }


def combination_figures() -> dict[str, dict[str, dict[str, float]]]:
    """Figures by star and way of combining dithers.

    Quintic and a mean, or drizzle with drops of a share of the pixel.
    """
    return {
        name: {way: _dithered_figures(psf, pixfrac) for way, pixfrac in COMBINATIONS.items()}
        for name, psf in STARS.items()
    }


def _dithered_figures(psf: PSF, pixfrac: float | None) -> dict[str, float]:
    rng, half = np.random.default_rng(2), BOX // 2
    differences, pixels, sums = [], [], []
    for px, py in rng.uniform(-0.5, 0.5, (PHASES, 2)):
        phases = rng.uniform(-0.5, 0.5, (DITHERS, 2))
        # The star stays in its place on the sky: each frame sees it where its phase puts it.
        frames = [
            star_image(psf, half + px + qx, half + py + qy, INPUT_SCALE, BOX + 1)
            for qx, qy in phases
        ]
        combined = _combined(frames, phases, pixfrac)
        differences.append(
            _difference(combined, psf, _output_place(half + px), _output_place(half + py))
        )
        frames = [rng.standard_normal((BOX + 1, BOX + 1)).astype(np.float32) for _ in phases]
        noise = _combined(frames, phases, pixfrac) * DITHERS**0.5
        pixels.append(float(noise.std()))
        sums += _aperture_sums(noise)
    return _summary(differences) | {
        "pixel_noise": float(np.mean(pixels)),
        "aperture_noise": float(np.std(sums)),
    }


def _aperture_sums(noise: Floats) -> list[float]:
    """Sums in apertures side by side, over what independent pixels would give."""
    middle = OUTPUT_SIZE // 2
    grid = np.arange(OUTPUT_SIZE) - middle
    disk = np.clip(NOISE_APERTURE + 0.5 - np.hypot(*np.meshgrid(grid, grid)), 0, 1)
    independent = np.sqrt((disk**2).sum())
    half = int(NOISE_APERTURE)
    side = 2 * half + 1
    small = disk[middle - half : middle + half + 1, middle - half : middle + half + 1]
    return [
        float((noise[j : j + side, i : i + side] * small).sum()) / independent
        for j in range(0, OUTPUT_SIZE - side, side)
        for i in range(0, OUTPUT_SIZE - side, side)
    ]


def _combined(frames: list[Image], phases: Floats, pixfrac: float | None) -> Floats:
    """Output pixels (electrons) from frames that see the sky at these phases (input pixels)."""
    places = (np.arange(OUTPUT_SIZE) + float(EDGE)) * OUTPUT_SCALE / INPUT_SCALE
    total, weight = np.zeros((2, OUTPUT_SIZE, OUTPUT_SIZE))
    for image, (qx, qy) in zip(frames, phases, strict=True):
        if pixfrac is None:
            total += _resampled(image, qx, qy, "quintic")
            weight += 1
            continue
        across, along = (_overlap(places + q, RATIO, len(image), pixfrac) for q in (qx, qy))
        total += along @ image @ across.T * RATIO**2
        weight += np.outer(along.sum(axis=1), across.sum(axis=1))
    return total / weight


def _overlap(places: Floats, size: float, count: int, drop: float) -> Floats:
    """Length that each output pixel shares with each input pixel's drop: (output, input).

    places, size: middles and size of output pixels, in input pixels.
    """
    inputs = np.arange(count)
    high = np.minimum(places[:, None] + size / 2, inputs + drop / 2)
    return np.maximum(high - np.maximum(places[:, None] - size / 2, inputs - drop / 2), 0)


def star_image(psf: PSF, x: float, y: float, scale: float, size: int) -> Image:
    """A star of 1e6 e- at a 0-based place, as the simulator draws it. scale: arcsec per pixel."""
    image = np.zeros((size, size), np.float32)
    matrix = np.array([[scale, 0.0, 0.0, scale]])
    render(
        image,
        np.array([x]),
        np.array([y]),
        np.array([1e6]),
        matrix,
        np.array([5.0]),
        profile_table(psf),
        12,
    )
    return image


def _centroid(image: Image | Floats, x: float, y: float) -> Floats:
    """First moment under a Gaussian window about the true place."""
    dx, dy = np.meshgrid(np.arange(image.shape[1]) - x, np.arange(image.shape[0]) - y)
    weight = image * np.exp(-(dx**2 + dy**2) / (2 * CENTROID_SIGMA**2))
    return 2 * np.array([(weight * dx).sum(), (weight * dy).sum()]) / weight.sum()


def _noise(kernel: str) -> dict[str, float]:
    """Scatter of a pixel and of an aperture over that of independent ones; spread of a hit pixel.

    cosmic_pixels: output pixels above 5 % of it; cosmic_faint_percent: of it, in those below 10 %.
    """
    hit = np.zeros((31, 31), np.float32)
    hit[15, 15] = 1.0
    flags, spread, faint = np.zeros(hit.shape, np.uint16), [], []
    for phase in np.linspace(0, 1, 8, endpoint=False):
        y, x = np.mgrid[5:26, 5:26] + phase
        image = resample(hit, np.ones_like(hit), flags, y, x, interpolation=kernel)[0]
        light = np.abs(image)
        spread.append((light > 0.05).sum())
        faint.append(light[light < 0.1].sum())
    return {
        "pixel_noise": noise_correlation(kernel),
        "aperture_noise": aperture_noise(kernel, NOISE_APERTURE),
        "cosmic_pixels": float(np.mean(spread)),
        "cosmic_faint_percent": 100 * float(np.mean(faint)),
    }


def markdown() -> str:
    """The tables as docs/accuracy.md shows them."""
    tables = kernel_figures() | {
        f"nine dithers, {name}": rows for name, rows in combination_figures().items()
    }
    lines: list[str] = []
    for title, rows in tables.items():
        names = list(next(iter(rows.values())))
        cells = [
            [way, *(f"{figures[name]:.3g}" for name in names)] for way, figures in rows.items()
        ]
        lines += ["", *table_lines([title, *names], cells)]
    return "\n".join(lines[1:])


if __name__ == "__main__":
    print(markdown())
