"""Interpolation kernels compared on stars whose resampled image is known: python -m benchmarks.accuracy.kernels

Each star is rendered on an array of 0.0197 arcsec and, as the answer, on the output of 0.02 arcsec, at many phases. What
differs between the resampled image and the answer is the kernel's doing.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.interpolation import TAPS, aperture_noise, noise_correlation
from gdask.kernels.resample import resample
from gdask.simulate.psf import PSF, Moffat, parameters, render

#: FWHM of the core in input pixels: GSAOI Kshort and J at good Strehl ratio; FLAMINGOS-2 in good seeing has 2.5.
STARS: dict[str, PSF] = {
    "core of 4.2 pixels": (Moffat(0.42, 0.083, 4), Moffat(0.58, 0.45, 3)),
    "core of 2.5 pixels": (Moffat(0.3, 0.050, 4), Moffat(0.7, 0.45, 3)),
}
INPUT, OUTPUT = 0.0197, 0.02
PLACES, BOX, CENTROID = 96, 60, 2.0


def table() -> dict[str, dict[str, dict[str, float]]]:
    """By star and kernel: centroid rms and worst (mas), flux mean and peak to peak over phases (%), noise, cosmic rays."""
    return {name: {kernel: _star(psf, kernel) | _noise(kernel) for kernel in TAPS} for name, psf in STARS.items()}


def _star(psf: PSF, kernel: str) -> dict[str, float]:
    rng = np.random.default_rng(1)
    phases = rng.uniform(-0.5, 0.5, (PLACES, 4))
    half = BOX // 2
    moved, fluxes, peaks = [], [], []
    for px, py, qx, qy in phases:  # of the star in its pixel, and of output pixels among input pixels
        raw = _image(psf, half * 1.0 + px, half * 1.0 + py, INPUT, BOX + 1)
        n = int(BOX * INPUT / OUTPUT) - 8
        grid = np.arange(n) + 4.0
        xmap, ymap = np.meshgrid(grid * OUTPUT / INPUT + qx, grid * OUTPUT / INPUT + qy)
        got = resample(raw, np.ones_like(raw), np.zeros(raw.shape, np.uint16), ymap, xmap, interpolation=kernel, area_ratio=(OUTPUT / INPUT) ** 2)[0]
        x, y = ((half + p - q) * INPUT / OUTPUT - 4.0 for p, q in ((px, qx), (py, qy)))
        want = _image(psf, x, y, OUTPUT, n)
        r = np.hypot(*np.meshgrid(np.arange(n) - x, np.arange(n) - y))
        disk = np.clip(12.5 - r, 0, 1)
        moved.append(_centroid(got, x, y) - _centroid(want, x, y))
        fluxes.append((got * disk).sum() / (want * disk).sum() - 1)
        peaks.append(got.max() / want.max() - 1)
    shift = np.array(moved) * OUTPUT * 1000
    return {
        "centroid_rms_mas": float(np.sqrt(np.mean(shift**2))), "centroid_worst_mas": float(np.abs(shift).max()),
        "flux_bias_percent": 100 * float(np.mean(fluxes)), "flux_range_percent": 100 * float(np.ptp(fluxes)),
        "peak_bias_percent": 100 * float(np.mean(peaks)),
    }  # fmt: skip


def _image(psf: PSF, x: float, y: float, scale: float, size: int) -> np.ndarray:
    image = np.zeros((size, size), np.float32)
    one = np.array([[scale, 0.0, 0.0, scale]])
    render(image, np.array([x]), np.array([y]), np.array([1e6]), one, np.array([5.0]), parameters(psf), 12)
    return image


def _centroid(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """First moment under a Gaussian window about the true place."""
    dx, dy = np.meshgrid(np.arange(image.shape[1]) - x, np.arange(image.shape[0]) - y)
    weight = image * np.exp(-(dx**2 + dy**2) / (2 * CENTROID**2))
    return 2 * np.array([(weight * dx).sum(), (weight * dy).sum()]) / weight.sum()


def _noise(kernel: str) -> dict[str, float]:
    """Scatter of a pixel and of an aperture of 3 pixels over that of independent ones; what a hit pixel spreads to."""
    hit = np.zeros((31, 31), np.float32)
    hit[15, 15] = 1.0
    spread, outside = [], []
    for phase in np.linspace(0, 1, 8, endpoint=False):
        y, x = np.mgrid[5:26, 5:26] + phase
        out = np.abs(resample(hit, np.ones_like(hit), np.zeros(hit.shape, np.uint16), y, x, interpolation=kernel)[0])
        spread.append((out > 0.05).sum())
        outside.append(out[out < 0.1].sum())
    return {"pixel_noise": noise_correlation(kernel), "aperture_noise": aperture_noise(kernel, 3.0),
            "cosmic_pixels": float(np.mean(spread)), "cosmic_faint_percent": 100 * float(np.mean(outside))}  # fmt: skip


def markdown() -> str:
    """The table as docs/accuracy.md shows it."""
    lines = []
    for star, kernels in table().items():
        names = list(next(iter(kernels.values())))
        lines += ["", f"| {star} | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
        lines += [f"| {kernel} | " + " | ".join(f"{figures[name]:.3g}" for name in names) + " |" for kernel, figures in kernels.items()]
    return "\n".join(lines[1:])


if __name__ == "__main__":
    print(markdown())
