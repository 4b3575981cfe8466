"""Names of raw files: other dots, underscores and folders than those of the archive."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import xarray as xr
from test_plan import frames, raw

from gdask.campaign import jobs, records
from gdask.campaign.job import is_named
from gdask.campaign.plan import make_plan
from gdask.campaign.scan import find_files, scan
from gdask.campaign.settings import Settings, new_flag
from gdask.cli import main
from gdask.model import GdaskError, UsageError
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
    record = {"products": [{"path": f"{flat.folder}/x_flat.fits"}]}
    records.write_record(tmp_path, flat, record)
    jobs._check_own(flat, folder / "x_flat.fits")
    records.write_record(tmp_path, flat._replace(id="flat-other"), record)
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


def test_a_link_to_nothing_is_missing_and_said(tmp_path: Path) -> None:
    (tmp_path / "S1.fits").write_text("junk")
    (tmp_path / "S2.fits").symlink_to("/gone/S2.fits")
    rows = {file.name: (file.kind, file.why) for file in scan([str(tmp_path)])}
    assert rows["S1.fits"][0] == "unreadable"
    assert rows["S2.fits"][0] == "missing" and "/gone/S2.fits" in rows["S2.fits"][1]


def test_a_folder_that_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "S1.fits").write_text("junk")
    (tmp_path / "shut").mkdir()
    real = os.scandir

    def look(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", look)
    with pytest.raises(PermissionError):
        find_files([str(tmp_path)])


def test_raw_in_the_folder_of_results_and_results_in_that_of_raw(tmp_path: Path) -> None:
    for name in ("S1.fits", "out/product.fits", "out/raw/S2.fits"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    out = tmp_path / "out"

    def found(place: Path) -> list[str]:
        return [os.path.basename(path) for path in find_files([str(place)], out)[0]]

    assert found(tmp_path) == ["S1.fits"]
    assert found(out / "raw") == ["S2.fits"]
    assert found(out) == []
    with pytest.raises(UsageError, match="give them folders of their own"):
        scan([str(out)], skip=out)


def test_a_run_without_anything_to_reduce_does_not_end_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/S1.fits").write_text("junk")
    line = ["run", str(tmp_path / "raw"), "-o", str(tmp_path / "out")]
    assert main(line) == 1
    assert "nothing to reduce among 1 files (1 unreadable)" in capsys.readouterr().err
    assert main([*line, "--json"]) == 2


def test_a_place_that_is_mistyped_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/S1.fits").write_text("junk")
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "out")
    assert main(["run", str(tmp_path / "raw"), "-o", out, "--dry-run"]) == 0
    for wrong in ("empty", "nowhere", "out"):
        assert main(["run", str(tmp_path / wrong), "-o", out, "--dry-run"]) == 2
    assert main(["status", out]) == 0


def test_a_record_that_is_not_as_it_was_written_is_none(tmp_path: Path) -> None:
    """A bit that has turned, a hand that has edited: the job is taken as not made."""
    flat = next(job for job in make_plan([*frames(6), *FLATS]).jobs if job.kind == "flat")
    record = {"status": "made", "seconds": 2.5, "products": [{"path": "a.fits", "size": 10}]}
    records.write_record(tmp_path, flat, record)
    path = records.record_path(tmp_path, flat)
    assert records.read_record(tmp_path, flat).items() > record.items()
    whole = path.read_text()
    for damaged in (
        whole.replace('"size": 10', '"size": 11'), whole.replace("made", "failed"), whole[:-20],
        "[" * 20000, "[]", "null", '{"sum": []}', whole.replace('"version": 2', '"version": 1'), "",
    ):  # fmt: skip
        path.write_text(damaged)
        assert records.read_record(tmp_path, flat) is None and not records.all_records(tmp_path)


def test_what_has_the_name_of_a_raw_file_and_is_none_is_named(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever; neither is passed over in silence."""
    os.mkfifo(tmp_path / "S20170505S0001.fits")
    (tmp_path / "S20170505S0002.fits").symlink_to("/dev/zero")
    (tmp_path / "md5sum.txt").symlink_to("/dev/zero")
    found = scan([str(tmp_path)])
    assert [file.kind for file in found] == ["unreadable", "unreadable"]
    assert all("not a regular file" in file.why for file in found)
