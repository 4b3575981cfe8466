"""Names of raw files: other dots, underscores and folders than those of the archive."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import xarray as xr
from test_plan import frames, raw

from gdask.campaign import jobs
from gdask.campaign.job import is_named
from gdask.campaign.plan import make_plan
from gdask.campaign.settings import Settings, new_flag
from gdask.model import GdaskError
from gdask.reduction import provenance

FLATS = [raw("flat", f"2017-05-05T20:0{k}", lamp="on" if k < 2 else "off") for k in range(4)]


def named(night: int, *names: str) -> list:
    files = frames(night, len(names))
    return [
        one._replace(name=name, path=f"/data/{night}/{name}")
        for one, name in zip(files, names, strict=True)
    ]


def test_a_name_with_dots_means_one_file() -> None:
    first, second = named(6, "n1.a.fits", "n1.b.fits")
    for name in ("n1.a.fits", "n1.a", "/data/6/n1.a.fits.bz2", first.label, first.key):
        assert is_named(first, name) and not is_named(second, name)
    assert not is_named(first, "n1")


def test_a_flag_leaves_other_frames_of_like_names_in_the_stack() -> None:
    files = named(6, "n.fits", "n.b.fits", "n-b.fits")
    plan = make_plan([*files, *FLATS], flags=[new_flag("n.b.fits", "cloud", "stack", because="x")])
    (stack,) = (job for job in plan.jobs if job.kind == "stack")
    names = [f"{stem}_skyCorrected.fits" for stem in ("n", "n.b", "n-b")]
    out = [name for name in names if jobs._is_out(name, stack.not_stacked)]
    assert out == ["n.b_skyCorrected.fits"]


@pytest.mark.parametrize("names", [("my_1.fits", "my_2.fits"), ("a.fits", "a_b.fits")])
def test_products_of_one_name_block_the_job(names: tuple[str, ...]) -> None:
    plan = make_plan([*named(6, *names), *FLATS])
    (job,) = (job for job in plan.jobs if job.kind == "frames")
    assert all(name in job.blocked for name in names) and "rename one" in job.blocked
    plan = make_plan([*named(6, "a.fits", "b.fits"), *FLATS])
    assert not any(job.blocked for job in plan.jobs)


def test_nights_numbered_anew_are_not_stacked_together_unsaid() -> None:
    files = [*named(6, "o1.fits", "o2.fits"), *named(7, "o1.fits", "o2.fits"), *FLATS]
    blocked = {job.id: job.blocked for job in make_plan(files).jobs if job.blocked}
    assert list(blocked) == ["stack-GSAOI-NGC5128-Kshort-all"]
    assert "/data/6/o1.fits and /data/7/o1.fits" in next(iter(blocked.values()))
    apart = make_plan(files, Settings(nights="apart"))
    assert not any(job.blocked for job in apart.jobs)


def test_a_product_of_another_job_is_not_replaced(tmp_path: Path) -> None:
    flat = next(job for job in make_plan([*frames(6), *FLATS]).jobs if job.kind == "flat")
    folder = tmp_path / flat.folder
    folder.mkdir(parents=True)
    (folder / "x_flat.fits").write_text("")
    record = json.dumps({"products": [{"path": f"{flat.folder}/x_flat.fits"}]})
    (folder / f"{flat.id}.json").write_text(record)
    jobs._check_own(flat, folder / "x_flat.fits")
    (folder / "flat-other.json").write_text(record)
    with pytest.raises(GdaskError, match=r"x_flat\.fits would replace that of flat-other"):
        jobs._check_own(flat, folder / "x_flat.fits")


def test_reduce_refuses_products_of_one_name_before_they_are_written() -> None:
    def frame(path: str) -> xr.Dataset:
        return xr.Dataset(attrs={"name": os.path.basename(path), "path": path})

    first, second = frame("/a/S1.fits"), frame("/a/S2.fits")
    assert len(provenance.distinct([first, second, first])) == 2
    for other in ("/b/S1.fits", "/a/S1_b.fits"):
        with pytest.raises(GdaskError, match=f"{other} and /a/S1.fits: .* rename one of them"):
            provenance.distinct([first, frame(other)])
