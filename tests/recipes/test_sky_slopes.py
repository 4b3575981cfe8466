"""A night whose sky slopes, otherwise in each frame, with the sky taken on target."""

from __future__ import annotations

from pathlib import Path

import pytest
from astropy.table import Table

from benchmarks.accuracy.sky import measure
from gdask import Reduce, cal_service
from gdask.simulate import simulate_f2


def test_a_stack_has_no_steps_where_the_sky_slopes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets alone leave steps of 10 e- at the edges of frames, and errors that VAR lacks."""
    monkeypatch.chdir(tmp_path)
    night = {"size": 512, "n_science": 7, "n_darks": 5, "n_short_darks": 3, "probe": "none"}
    simulate_f2(tmp_path, **night, sky_gradient=0.012)
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    cal_service.set_local_database().init()
    frames = Table.read("truth/frames.ecsv")
    darks = (frames["kind"] == "dark") & (frames["exptime"] > 100)
    lamps = (frames["kind"] == "flat_on") | (frames["kind"] == "flat_off")

    def reduce(rows: Table, **parameters: str) -> None:
        reduction = Reduce()
        reduction.files.extend(f"raw/{name}" for name in rows["file"])
        reduction.uparms |= {f"matchSkyLevels:{name}": text for name, text in parameters.items()}
        reduction.runr()

    reduce(frames[darks])
    reduce(frames[lamps])
    figures = {}
    for surface in ("offset", "auto"):
        reduce(frames[frames["kind"] == "science"], surface=surface)
        image = next(Path().glob("*_image.fits"))
        figures[surface] = measure(str(image), "truth")
    offset, auto = figures["offset"], figures["auto"]
    assert offset["edge_beyond_noise_e"] > 6 and offset["block_ratio"] > 2
    assert auto["edge_beyond_noise_e"] < 2 and auto["block_ratio"] < 1.4
    assert offset["blank12_pull"] > 1.5 and auto["blank12_pull"] < 1.25
    assert auto["ring6_shallow_pull"] == pytest.approx(1.0, abs=0.12)
