"""Interpolation kernels compared on stars whose resampled image is known: python -m benchmarks.accuracy.kernels

Each star is rendered on an array of 0.0197 arcsec and, as the answer, on the output of 0.02 arcsec, at many phases. What
differs between the resampled image and the answer is the kernel's doing.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.resample.interpolation import TAPS, aperture_noise, noise_correlation
from gdask.kernels.resample.resampling import resample
from gdask.simulate.rendering import PSF, Moffat, profile_table, render

#: FWHM of the core in input pixels: GSAOI Kshort and J at good Strehl ratio; FLAMINGOS-2 in good seeing has 2.5.
STARS: dict[str, PSF] = {
    "core of 4.2 pixels": (Moffat(0.42, 0.083, 4), Moffat(0.58, 0.45, 3)),
    "core of 2.5 pixels": (Moffat(0.3, 0.050, 4), Moffat(0.7, 0.45, 3)),
}
INPUT, OUTPUT = 0.0197, 0.02
PLACES, BOX, CENTROID = 96, 60, 2.0


def table() -> dict[str, dict[str, dict[str, float]]]:
    """By star and kernel: centroid rms and worst (mas), flux mean and peak to peak over phases (%), noise, cosmic rays."""
    return {
        name: {kernel: _star(psf, kernel) | _noise(kernel) for kernel in TAPS}
        for name, psf in STARS.items()
    }


def _star(psf: PSF, kernel: str) -> dict[str, float]:
    rng = np.random.default_rng(1)
    phases = rng.uniform(-0.5, 0.5, (PLACES, 4))
    half = BOX // 2
    moved, fluxes, peaks = [], [], []
    for (
        px,
        py,
        qx,
        qy,
    ) in phases:  # of the star in its pixel, and of output pixels among input pixels
        raw = _image(psf, half * 1.0 + px, half * 1.0 + py, INPUT, BOX + 1)
        n = int(BOX * INPUT / OUTPUT) - 8
        grid = np.arange(n) + 4.0
        xmap, ymap = np.meshgrid(grid * OUTPUT / INPUT + qx, grid * OUTPUT / INPUT + qy)
        got = resample(
            raw,
            np.ones_like(raw),
            np.zeros(raw.shape, np.uint16),
            ymap,
            xmap,
            interpolation=kernel,
            area_ratio=(OUTPUT / INPUT) ** 2,
        )[0]
        x, y = ((half + p - q) * INPUT / OUTPUT - 4.0 for p, q in ((px, qx), (py, qy)))
        want = _image(psf, x, y, OUTPUT, n)
        r = np.hypot(*np.meshgrid(np.arange(n) - x, np.arange(n) - y))
        disk = np.clip(12.5 - r, 0, 1)
        moved.append(_centroid(got, x, y) - _centroid(want, x, y))
        fluxes.append((got * disk).sum() / (want * disk).sum() - 1)
        peaks.append(got.max() / want.max() - 1)
    shift = np.array(moved) * OUTPUT * 1000
    return {
        "centroid_rms_mas": float(np.sqrt(np.mean(shift**2))),
        "centroid_worst_mas": float(np.abs(shift).max()),
        "flux_bias_percent": 100 * float(np.mean(fluxes)),
        "flux_range_percent": 100 * float(np.ptp(fluxes)),
        "peak_bias_percent": 100 * float(np.mean(peaks)),
    }


def dithered() -> dict[str, dict[str, dict[str, float]]]:
    """By star and way of combining nine dithers: quintic and a mean, or drizzle with drops of a share of the pixel."""
    return {name: {way: _dithered(psf, way) for way in WAYS} for name, psf in STARS.items()}


#: The mean of resampled frames, and pixfracs of drizzle (Fruchter & Hook 2002).
WAYS: dict[str, float | None] = {
    "quintic, mean": None,
    "drizzle 1.0": 1.0,
    "drizzle 0.7": 0.7,
    "drizzle 0.4": 0.4,
}
DITHERS = 9


def _dithered(psf: PSF, way: str) -> dict[str, float]:
    rng, half, n = np.random.default_rng(2), BOX // 2, int(BOX * INPUT / OUTPUT) - 8
    moved, fluxes, peaks, pixels, sums = [], [], [], [], []
    for px, py in rng.uniform(-0.5, 0.5, (PLACES, 2)):
        phases = rng.uniform(-0.5, 0.5, (DITHERS, 2))
        # The star stays in its place on the sky: each frame sees it where its phase puts it.
        raw = [_image(psf, half + px + qx, half + py + qy, INPUT, BOX + 1) for qx, qy in phases]
        got = _combined(raw, phases, way, n)
        x, y = ((half + p) * INPUT / OUTPUT - 4.0 for p in (px, py))
        want = _image(psf, x, y, OUTPUT, n)
        disk = np.clip(12.5 - np.hypot(*np.meshgrid(np.arange(n) - x, np.arange(n) - y)), 0, 1)
        moved.append(_centroid(got, x, y) - _centroid(want, x, y))
        fluxes.append((got * disk).sum() / (want * disk).sum() - 1)
        peaks.append(got.max() / want.max() - 1)
        noise = (
            _combined(
                [rng.standard_normal((BOX + 1, BOX + 1)).astype(np.float32) for _ in phases],
                phases,
                way,
                n,
            )
            * DITHERS**0.5
        )
        small = np.clip(
            3.5 - np.hypot(*np.meshgrid(np.arange(n) - n // 2, np.arange(n) - n // 2)), 0, 1
        )
        pixels.append(float(noise.std()))
        sums += [
            float((noise[j : j + 7, i : i + 7] * _middle(small)).sum()) / np.sqrt((small**2).sum())
            for j in range(0, n - 7, 7)
            for i in range(0, n - 7, 7)
        ]
    shift = np.array(moved) * OUTPUT * 1000
    return {
        "centroid_rms_mas": float(np.sqrt(np.mean(shift**2))),
        "centroid_worst_mas": float(np.abs(shift).max()),
        "flux_bias_percent": 100 * float(np.mean(fluxes)),
        "flux_range_percent": 100 * float(np.ptp(fluxes)),
        "peak_bias_percent": 100 * float(np.mean(peaks)),
        "pixel_noise": float(np.mean(pixels)),
        "aperture_noise": float(np.std(sums)),
    }


def _middle(disk: np.ndarray) -> np.ndarray:
    j, i = (size // 2 for size in disk.shape)
    return disk[j - 3 : j + 4, i - 3 : i + 4]


def _combined(raw: list[np.ndarray], phases: np.ndarray, way: str, n: int) -> np.ndarray:
    """n x n output pixels from frames that see the sky at these phases (input pixels), as electrons per output pixel."""
    ratio, places = OUTPUT / INPUT, (np.arange(n) + 4.0) * OUTPUT / INPUT
    total, weight = np.zeros((n, n)), np.zeros((n, n))
    for image, (qx, qy) in zip(raw, phases, strict=True):
        if WAYS[way] is None:
            xmap, ymap = np.meshgrid(places + qx, places + qy)
            total += resample(
                image,
                np.ones_like(image),
                np.zeros(image.shape, np.uint16),
                ymap,
                xmap,
                area_ratio=ratio**2,
            )[0]
            weight += 1
            continue
        across, along = (
            _overlap(places + q, ratio, len(image), float(WAYS[way] or 0)) for q in (qx, qy)
        )
        total += along @ image @ across.T * ratio**2
        weight += np.outer(along.sum(axis=1), across.sum(axis=1))
    return total / weight


def _overlap(places: np.ndarray, size: float, count: int, drop: float) -> np.ndarray:
    """Length that each output pixel (centre, size in input pixels) shares with each input pixel's drop."""
    inputs = np.arange(count)
    high = np.minimum(places[:, None] + size / 2, inputs + drop / 2)
    return np.maximum(high - np.maximum(places[:, None] - size / 2, inputs - drop / 2), 0)


def _image(psf: PSF, x: float, y: float, scale: float, size: int) -> np.ndarray:
    image = np.zeros((size, size), np.float32)
    one = np.array([[scale, 0.0, 0.0, scale]])
    render(
        image,
        np.array([x]),
        np.array([y]),
        np.array([1e6]),
        one,
        np.array([5.0]),
        profile_table(psf),
        12,
    )
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
        out = np.abs(
            resample(
                hit, np.ones_like(hit), np.zeros(hit.shape, np.uint16), y, x, interpolation=kernel
            )[0]
        )
        spread.append((out > 0.05).sum())
        outside.append(out[out < 0.1].sum())
    return {
        "pixel_noise": noise_correlation(kernel),
        "aperture_noise": aperture_noise(kernel, 3.0),
        "cosmic_pixels": float(np.mean(spread)),
        "cosmic_faint_percent": 100 * float(np.mean(outside)),
    }


def markdown() -> str:
    """The tables as docs/accuracy.md shows them."""
    lines = []
    for star, kernels in (
        *table().items(),
        *((f"nine dithers, {name}", rows) for name, rows in dithered().items()),
    ):
        names = list(next(iter(kernels.values())))
        lines += ["", f"| {star} | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
        lines += [
            f"| {kernel} | " + " | ".join(f"{figures[name]:.3g}" for name in names) + " |"
            for kernel, figures in kernels.items()
        ]
    return "\n".join(lines[1:])


if __name__ == "__main__":
    print(markdown())
