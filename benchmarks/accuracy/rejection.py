"""Cosmic rays and rejection measured exactly: the same night, the same noise, with and without either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.io import fits

from benchmarks.accuracy.measure import DEPTH, UNFIT
from benchmarks.accuracy.scene import APERTURE, Scene, coverage
from gdask.model import DQ

#: Parameters that leave all rejection out.
NO_REJECTION = ("stackFrames:reject_method=none",)


#: Electrons of the stack by which cosmic rays must change a pixel to count.
TOUCHED = 3.0


def compare(scene: Scene, reduce: Callable[..., Path]) -> dict[str, float]:
    """reduce(cosmics: bool, *parameters) gives an image; scene: of the night without cosmic rays, with rejection.

    Charge: sum over the pixels that cosmic rays touch (difference of the stacks without rejection), with rejection over
    without. Loss: flux in apertures without rejection less that with it, over the expected flux, of stars that saturate in no
    frame, under DEPTH frames or more.
    """
    hit, hit_all, clean, clean_all = (
        _pixels(reduce(cosmics, *more))
        for cosmics, more in ((True, ()), (True, NO_REJECTION), (False, ()), (False, NO_REJECTION))
    )
    unfit = np.uint16(UNFIT & ~8)  # a cosmic ray's flag is no reason
    usable = np.all([dq & unfit == 0 for _, dq in (hit, hit_all, clean, clean_all)], axis=0)
    usable &= coverage(scene) >= DEPTH
    whole = usable & ((clean[1] | clean_all[1]) & np.uint16(DQ.SATURATED) == 0)
    injected = np.where(usable, hit_all[0] - clean_all[0], 0)
    touched = np.abs(injected) > TOUCHED
    left = np.where(usable & touched, hit[0] - clean[0], 0)
    # Cosmic rays change levels and sky frames, too, by a fraction of an electron everywhere.
    left[usable & touched] -= np.median((hit[0] - clean[0])[usable & ~touched])
    changed = clean[0] - clean_all[0]
    losses = []
    peak = scene.psf[:, 0].mean()
    for k in np.flatnonzero(scene.frames > 0):
        i, j = round(float(scene.x[k])), round(float(scene.y[k]))
        reach = int(APERTURE)
        cut = np.s_[j - reach : j + reach + 1, i - reach : i + reach + 1]
        if (
            min(i, j) > reach
            and scene.flux[k] * peak > 500
            and whole[cut].size == (2 * reach + 1) ** 2
            and whole[cut].all()
        ):
            losses.append((-float(changed[cut].sum()), float(scene.flux[k])))
    lost = np.array(losses).reshape(-1, 2)
    bright = lost[lost[:, 1] > np.percentile(lost[:, 1], 75)] if len(lost) else lost
    return {
        "cosmic_removed_percent": 100 * (1 - float(left.sum()) / float(injected[touched].sum())),
        "cosmic_left_over_absolute_percent": 100
        * float(np.abs(left).sum())
        / float(np.abs(injected[touched]).sum()),
        "star_loss_percent": 100 * float(lost[:, 0].sum() / lost[:, 1].sum())
        if len(lost)
        else float("nan"),
        "star_loss_worst_percent": 100 * float(np.max(bright[:, 0] / bright[:, 1]))
        if len(bright)
        else float("nan"),
        "loss_stars": len(lost),
    }


def _pixels(image: Path) -> tuple[np.ndarray, np.ndarray]:
    with fits.open(image) as hdus:
        return hdus["SCI"].data.astype("f4"), hdus["DQ"].data.astype("u2")
