"""Simulate and write a night: plan, expose, read out, write headers, write the truth.

What differs between the instruments comes from them as values (`Night`) and as functions
(`Camera`).

Light of the sky, of the lamp and of a halo passes FLAT = RESPONSE x AREA (AREA: a pixel's solid
angle over the mean); a star's or a galaxy's light passes RESPONSE alone, spread over the pixels by
their true shape on the sky.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header

from gdask.simulate import truth
from gdask.simulate.detector import Hits, Readout, cosmic_rays, read_out
from gdask.simulate.gemini_headers import Facts
from gdask.simulate.geometry import (
    FULL_SIZE,
    pixel_area,
    pixel_range,
)
from gdask.simulate.light import AnyOptions, Detector, Night, central_window, shape_of_sky
from gdask.simulate.plan import Exposure
from gdask.simulate.seeds import generator
from gdask.simulate.sky_light import row_noise
from gdask.simulate.truth import Counts
from gdask.types import Image

Array = npt.NDArray[np.float64]

WRITERS = 2  # threads
FITS_BLOCK = 2880  # bytes: headers are padded with blanks, data with zeros


class Share(NamedTuple):
    """What is observed in one filter of a campaign, instead of the tutorial's target and plan."""

    target: tuple[float, float]  # degrees
    sky_seed: int  # of the stars about it
    exposures: list[Exposure]
    #: Made before for the same instrument, filter, size and seed; None: to be made.
    detectors: list[Detector] | None = None


class Camera(NamedTuple):
    """What an instrument does to a frame, and what the truth says of it.

    The functions take an exposure, and most of them an array (from 0).
    """

    expected: Callable[[Exposure, int], Image]  # electrons per coadd, before noise
    readout: Callable[[Exposure, int], Readout]
    stored: Callable[[Exposure, Image], npt.NDArray[np.generic]]  # from ADU, mean of coadds
    primary_header: Callable[[Exposure], Header]
    image_header: Callable[[Exposure, int], Header]
    frame_columns: Callable[[Exposure], dict[str, object]]  # added to the table of frames
    scene: dict[str, object]  # added to scene.json
    bits: str  # what the bits of the bad-pixel maps mean


def instrument_facts(instrument: str, shared: tuple[str, ...]) -> tuple[Facts, list[Facts]]:
    """The simulator's facts of an instrument, and the instrument's arrays.

    shared: names of the instrument's own facts that are added.
    """
    name = f"{instrument}.toml"
    from_instrument = tomllib.loads((files("gdask.instruments") / name).read_text())
    facts = tomllib.loads((files("gdask.simulate") / name).read_text())
    return facts | {key: from_instrument[key] for key in shared}, from_instrument["arrays"]


# Writing ----------------------------------------------------------------------------------------


def write_night(
    out: str | Path,
    night: Night[AnyOptions],
    camera: Camera,
    progress: Callable[[str], None] | None,
) -> list[Path]:
    """Write raw frames to out/raw, several at a time, and truth to out/truth.

    progress: called with each file's name. Returns the raw files, in order of their names.
    """
    raw, tables = Path(out) / "raw", Path(out) / "truth"
    for folder in (raw, tables):
        folder.mkdir(parents=True, exist_ok=True)
    counts = write_frames(night, camera, lambda _: raw, progress)
    write_truth(night, camera, counts, tables)
    return sorted(raw / exposure.file for exposure in night.exposures)


def write_frames(
    night: Night[AnyOptions],
    camera: Camera,
    folder: Callable[[Exposure], Path],
    progress: Callable[[str], None] | None,
) -> list[Counts]:
    """Write raw frames, several at a time, each into its `folder`, which exists.

    progress: called with each file's name. Returns what happened in each frame.
    """
    counts = []
    with ThreadPoolExecutor(WRITERS) as pool:
        jobs = [
            pool.submit(write_exposure, night, camera, exposure, folder(exposure))
            for exposure in night.exposures
        ]
        try:
            for exposure, job in zip(night.exposures, jobs):
                counts.append(job.result())
                if progress:
                    progress(exposure.file)
        finally:
            pool.shutdown(cancel_futures=True)
    return counts


def write_exposure(
    night: Night[AnyOptions], camera: Camera, exposure: Exposure, folder: Path
) -> Counts:
    """Simulate and write one frame, and return its saturated pixels and cosmic rays by array."""
    hits: list[Hits] = []
    saturated: list[int] = []

    def images() -> Iterator[tuple[Header, npt.NDArray[np.generic]]]:
        options = night.options
        for array in range(len(night.detectors)):
            # an instrument with one array has no array number in its purpose
            purpose = (exposure.file, array) if len(night.detectors) > 1 else (exposure.file,)
            light = camera.expected(exposure, array)
            rate = options.cr_rate * exposure.exptime * exposure.coadds * light.size / FULL_SIZE**2
            rng = generator(options.seed, "cosmics", *purpose)
            hits.append(cosmic_rays(rng, (light.shape[0], light.shape[1]), rate))
            readout = camera.readout(exposure, array)
            rng = generator(options.seed, "pixels", *purpose)
            raw = read_out(rng, light, readout, hits[-1])
            if options.row_noise:
                rows = generator(options.seed, "rows", *purpose)
                raw += row_noise(rows, raw.shape, options.row_noise / readout.gain)
            saturated.append(int((raw >= readout.saturation).sum()))
            yield camera.image_header(exposure, array), camera.stored(exposure, raw)

    write_mef(folder / exposure.file, camera.primary_header(exposure), images())
    return Counts(tuple(saturated), tuple(hits))


def write_mef(
    path: Path, primary: Header, extensions: Iterable[tuple[Header, npt.NDArray[np.generic]]]
) -> Path:
    """Write a multi-extension FITS file, whole or not at all.

    `extensions` may be a generator, so that one array is in memory at a time. Data: float32, int32
    and uint8 as they are, uint16 with BZERO 32768.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as out:
            out.write(primary.tostring().encode("ascii"))
            for header, data in extensions:
                out.write(header.tostring().encode("ascii"))
                raw = _big_endian(data)
                out.write(raw)
                out.write(bytes(-len(raw) % FITS_BLOCK))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _big_endian(data: npt.NDArray[np.generic]) -> bytes:
    """The bytes of data as FITS has them."""
    if data.dtype == np.uint16:
        data = (data.astype(np.int32) - 32768).astype(np.int16)
    return data.astype(data.dtype.newbyteorder(">"), copy=False).tobytes()


# Truth ------------------------------------------------------------------------------------------


def write_truth(
    night: Night[AnyOptions], camera: Camera, counts: list[Counts], folder: Path
) -> None:
    """Write every truth file of a night into `folder`. counts: of each frame."""
    truth.write(
        folder,
        catalog=truth.source_catalog(night.stars, night.galaxies),
        frames=truth.frame_table(
            night.exposures,
            counts,
            night.zero_point,
            lambda exposure: (
                {"sky_shape": json.dumps(shape_of_sky(night, exposure))}
                | camera.frame_columns(exposure)
            ),
        ),
        cosmics=truth.cosmic_ray_table(night.exposures, counts),
        arrays=_planes(night),
        scene=_shared_scene(night) | camera.scene,
        bits=camera.bits,
    )


def _planes(night: Night[AnyOptions]) -> Iterator[truth.Planes]:
    """What is true of each array."""
    window = central_window(night.options.size)
    pixels = pixel_range(window.x, window.size) + 1.0
    for detector in night.detectors:
        area = pixel_area(detector.chip, pixels, pixels) / night.mean_area
        pattern = detector.pattern
        yield truth.Planes(
            detector.facts["name"], detector.flat, pattern.response, area, pattern.dark, pattern.bad
        )


def _shared_scene(night: Night[AnyOptions]) -> dict[str, object]:
    """What scene.json says of a night of any instrument."""
    return {
        "instrument": night.instrument,
        "filter": night.options.filter,
        "zp": night.zero_point,
        "pixel_scale": night.pixel_scale,
        "mean_pixel_area": night.mean_area,
        "halo": night.halo._asdict() if night.halo else None,
        "halo_law": truth.HALO,
        "sky_law": truth.SKY,
        "target": night.centres["target"],
        "sky_field": night.centres.get("sky"),
        "options": night.options._asdict(),
        "exptime": night.exptime,
        "science_field": "target",
        "science_kind": "science",
    }
