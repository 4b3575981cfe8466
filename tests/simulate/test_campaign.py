"""Simulated campaigns: nights, targets, names and labels, and faults against their truth."""

from __future__ import annotations

import bz2
import hashlib
import itertools
import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gdask import dataselect
from gdask.cli import simulate as command
from gdask.model import GdaskError
from gdask.simulate import simulate_campaign
from gdask.simulate.campaign import plan_campaign
from gdask.simulate.campaign_faults import WIDER
from gdask.simulate.campaign_options import BY_NAME_ONLY, FAULTS, campaign_options
from gdask.simulate.geometry import Chip, Pose, sky_to_pixel

SIZE, NIGHTS, TARGETS = 64, 3, 2
GAIN = 4.44  # e-/ADU of FLAMINGOS-2
DAMAGED = ("truncated", "unreadable", "missing")


class Written(NamedTuple):
    """A campaign on disk, with its truth."""

    out: Path
    files: Table
    faults: dict[str, Any]

    def path(self, name: str) -> Path:
        return self.out / "raw" / name

    def of_fault(self, kind: str) -> list[str]:
        """Paths below raw of the files that have a fault."""
        return sorted(n for n, found in self.faults["files"].items() if found["fault"] == kind)

    def head(self, name: str) -> fits.Header:
        return fits.getheader(self.path(name))


def written(out: Path, **options: Any) -> Written:
    simulate_campaign(out, **options)
    files = Table.read(out / "truth" / "files.ecsv", fill_values=None)
    files.add_index("path")
    return Written(out, files, json.loads((out / "truth" / "faults.json").read_text()))


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Three nights, two targets, two filters, both instruments, all faults; tiny frames."""
    return written(
        tmp_path_factory.mktemp("campaign"),
        size=SIZE,
        nights=NIGHTS,
        targets=TARGETS,
        filters="Kshort,J",
        faults="all",
        n_flats=2,
        n_darks=1,
        n_sky=2,
    )


@pytest.fixture(scope="module")
def readable(campaign: Written) -> dict[str, fits.Header]:
    """Primary headers of all files that can be read, by path."""
    return {
        row["path"]: campaign.head(row["path"])
        for row in campaign.files
        if row["fault"] not in DAMAGED and row["kind"] != "bpm"
    }


def start(head: fits.Header) -> datetime:
    return datetime.fromisoformat(f"{head['DATE-OBS']}T{head['UT']}")


def test_names_turn_at_18_h_ut_and_count_in_order_of_time(
    campaign: Written, readable: dict[str, fits.Header]
) -> None:
    days = set()
    for name, head in readable.items():
        night = name.split("/")[-1][1:9]
        assert f"{start(head) + timedelta(hours=6):%Y%m%d}" == night, name
        days.add((night, head["DATE-OBS"].replace("-", "")))
        if not name.startswith("again/"):
            assert name.startswith(f"{night}/S{night}S")
    assert len({night for night, _ in days}) == NIGHTS
    for night in {night for night, _ in days}:  # the afternoon and evening have the day before
        assert len({day for other, day in days if other == night}) == 2
    taken = campaign.files[campaign.files["mjd"] > 0]
    taken = taken[taken["copy_of"] == ""]
    names = [name.split("/")[1][:14] for name in taken["path"]]
    assert len(set(names)) == len(names)
    order = np.argsort(names)
    assert (np.diff(taken["mjd"][order]) > 0).all()


def test_an_exposure_of_each_night_crosses_midnight_ut(readable: dict[str, fits.Header]) -> None:
    crossing = {
        name.split("/")[0]
        for name, head in readable.items()
        if head["OBSCLASS"] == "science"
        and start(head).hour == 23
        and start(head) + timedelta(seconds=10 + head["EXPTIME"] / 2) > day_after(head)
    }
    assert len(crossing) == NIGHTS


def day_after(head: fits.Header) -> datetime:
    return datetime.fromisoformat(head["DATE-OBS"]) + timedelta(days=1)


def test_targets_lie_apart_and_labels_are_unique(
    campaign: Written, readable: dict[str, fits.Header]
) -> None:
    once = {name: head for name, head in readable.items() if not name.startswith("again/")}
    labels = Counter(head["DATALAB"] for head in once.values())
    assert max(labels.values()) == 1
    listed = campaign.files[[row["path"] in once for row in campaign.files]]
    assert set(listed["data_label"]) == set(labels)
    science: dict[tuple, set] = {}
    for head in once.values():
        if head["OBSCLASS"] == "science" and head["INSTRUME"] in ("GSAOI", "F2"):
            place = (head["RA"], head["DEC"])
            science.setdefault((head["INSTRUME"], head["GEMPRGID"]), set()).add(place)
    assert len(science) == 2 * TARGETS  # a programme for each target of each instrument
    assert all(len(places) == 1 for places in science.values())  # the same in all nights
    for instrument in ("GSAOI", "F2"):
        (one,), (two,) = (v for k, v in science.items() if k[0] == instrument)
        assert np.hypot((one[0] - two[0]) * np.cos(np.radians(one[1])), one[1] - two[1]) > 3.0
    filters: dict[str, set] = {}
    for head in once.values():
        if head["OBSCLASS"] == "science" and head["INSTRUME"] == "GSAOI":
            filters.setdefault(head["OBSID"], set()).add(head["FILTER1"])
    assert all(len(names) == 1 for names in filters.values())


def test_every_calibration_that_is_needed_is_there(campaign: Written) -> None:
    usable = campaign.files[[fault not in DAMAGED for fault in campaign.files["fault"]]]
    files = [str(campaign.path(name)) for name in usable["path"] if "again" not in name]

    def counts(tags: list[str], expression: str) -> list[int]:
        """Files with these tags, by night."""
        picked = dataselect.select_data(files, tags, [], dataselect.expr_parser(expression))
        nights = ("20170505", "20170506", "20170507")
        return [len([name for name in picked if f"/{night}/" in name]) for night in nights]

    for exptime in (8, 60, 2, 10):  # of science frames in Ks and J, short ones, of flats in Ks
        assert counts(["F2", "DARK"], f"exposure_time=={exptime}") == [1, 1, 1]
    assert counts(["F2", "FLAT", "LAMPON"], "filter_name=='J'") == [2, 2, 2]
    assert counts(["F2", "FLAT", "LAMPOFF"], "filter_name=='J'") == [2, 0, 2]  # of another night
    assert counts(["F2", "FLAT", "LAMPOFF"], "filter_name=='Ks'") == [2, 2, 2]
    assert counts(["GSAOI", "FLAT", "LAMPON"], "filter_name=='J'") == [2, 2, 2]
    assert counts(["GSAOI", "FLAT", "LAMPOFF"], "filter_name=='J'") == [2, 2, 2]
    assert counts(["GSAOI", "LAMPON"], "filter_name=='Kshort'") == [2, 2, 0]  # fault noflats
    assert len(list((campaign.out / "raw").glob("bpm_*_full_4amp.fits"))) == 1


# Faults -----------------------------------------------------------------------------------------


def test_all_kinds_of_faults_are_there_and_listed(campaign: Written) -> None:
    assert campaign.faults["left_out"] == {}
    kinds = [kind for kind in FAULTS if kind not in BY_NAME_ONLY]
    assert list(campaign.faults["kinds"]) == kinds and len(kinds) == 16
    of_files = {found["fault"] for found in campaign.faults["files"].values()}
    of_nights = {found["fault"] for found in campaign.faults["nights"]}
    assert of_files | of_nights == set(kinds)
    listed = {row["path"]: row["fault"] for row in campaign.files if row["fault"]}
    assert listed == {name: found["fault"] for name, found in campaign.faults["files"].items()}
    there = {str(path.relative_to(campaign.out / "raw")) for path in files_below(campaign)}
    assert there == set(campaign.files["path"]) - set(campaign.of_fault("missing"))


def files_below(campaign: Written) -> list[Path]:
    found = (campaign.out / "raw").rglob("*")
    return [path for path in found if path.is_file() and path.name != "md5sum.txt"]


def test_md5sums_tell_damaged_files_and_no_others(campaign: Written) -> None:
    wrong, listed = set(), set()
    for sums in (campaign.out / "raw").rglob("md5sum.txt"):
        for line in sums.read_text().splitlines():
            md5, name = line.split("  ")
            path = sums.parent / name
            listed.add(str(path.relative_to(campaign.out / "raw")))
            content = path.read_bytes() if path.exists() else b""
            if hashlib.md5(content).hexdigest() != md5:
                wrong.add(str(path.relative_to(campaign.out / "raw")))
    assert listed == set(campaign.files["path"])
    assert wrong == {name for kind in DAMAGED for name in campaign.of_fault(kind)}
    assert len(wrong) == len(DAMAGED)


def test_damaged_files_are_what_they_are_called(campaign: Written) -> None:
    (cut,), (page,), (gone,) = map(campaign.of_fault, DAMAGED)
    whole = campaign.files[
        (campaign.files["instrument"] == campaign.files.loc[cut]["instrument"])
        & (campaign.files["kind"] == "science")
        & (campaign.files["fault"] == "")
    ]["path"][0]
    assert campaign.path(cut).stat().st_size < 0.7 * plain_size(campaign.path(whole))
    assert campaign.path(cut).read_bytes().startswith(b"SIMPLE")
    assert b"Gateway" in campaign.path(page).read_bytes()
    assert not campaign.path(gone).exists()


def plain_size(path: Path) -> int:
    content = path.read_bytes()
    return len(bz2.decompress(content) if path.suffix == ".bz2" else content)


def test_copies_are_of_the_same_frame(campaign: Written) -> None:
    copies = campaign.of_fault("duplicate")
    assert len(copies) == 2 and sum(name.endswith(".bz2") for name in copies) == 1
    for name in copies:
        original = campaign.faults["files"][name]["of"]
        one, two = (content_of(campaign.path(path)) for path in (name, original))
        assert one == two and name.split("/")[1] != original.split("/")[1]


def content_of(path: Path) -> bytes:
    content = path.read_bytes()
    return bz2.decompress(content) if path.suffix == ".bz2" else content


def test_headers_of_odd_frames_say_what_they_are(campaign: Written) -> None:
    (acquisition,) = campaign.of_fault("acquisition")
    (twilight,) = campaign.of_fault("twilight")
    (spectrum,) = campaign.of_fault("spectrum")
    (other,) = campaign.of_fault("other")
    (wrong,) = campaign.of_fault("exptime")
    (lonely,) = campaign.of_fault("lonely")

    def tags(name: str) -> set[str]:
        wanted = ("ACQUISITION", "TWILIGHT", "SPECT", "IMAGE")
        path = [str(campaign.path(name))]
        always = dataselect.expr_parser("True")
        return {tag for tag in wanted if dataselect.select_data(path, [tag], [], always)}

    assert tags(acquisition) == {"ACQUISITION", "IMAGE"}
    assert tags(twilight) == {"TWILIGHT", "IMAGE"}
    assert tags(spectrum) == {"SPECT"}
    assert campaign.head(other)["INSTRUME"] == "GMOS-S"
    assert campaign.head(wrong)["EXPTIME"] == -9999.0
    assert campaign.files.loc[wrong]["exptime"] > 0
    exptime, of_others = campaign.head(lonely)["EXPTIME"], campaign.files.loc[lonely]["exptime"]
    same = campaign.files["observation_id"] == campaign.files.loc[lonely]["observation_id"]
    assert exptime == of_others and same.sum() == 1
    program = campaign.files["program_id"] == campaign.files.loc[lonely]["program_id"]
    assert (campaign.files["exptime"][program] == exptime).sum() == 1


def test_a_renamed_target_keeps_position_and_programme(
    campaign: Written, readable: dict[str, fits.Header]
) -> None:
    (renamed,) = (found for found in campaign.faults["nights"] if found["fault"] == "renamed")
    heads = {name: head for name, head in readable.items() if head["OBJECT"] == renamed["name"]}
    assert heads and all(name.startswith((renamed["night"], "again")) for name in heads)
    places = {(head["RA"], head["DEC"], head["GEMPRGID"]) for head in heads.values()}
    assert len(places) == 1
    others = [
        head["OBJECT"]
        for head in readable.values()
        if (head["RA"], head["DEC"], head["GEMPRGID"]) in places
    ]
    assert set(others) == {renamed["name"], renamed["target"]}


def test_flats_without_lamp_have_no_light(campaign: Written) -> None:
    (place,) = (found for found in campaign.faults["nights"] if found["fault"] == "lampoff")
    flats = campaign.files[
        (campaign.files["kind"] == "flat_on")
        & (campaign.files["instrument"] == place["instrument"])
        & (campaign.files["filter"] == place["filter"])
    ]
    levels = {
        name: np.median(fits.getdata(campaign.path(name), 1).astype(float))
        for name in flats["path"]
    }
    dark = campaign.of_fault("lampoff")
    assert {name.split("/")[0] for name in dark} == {place["night"]} and len(dark) == 2
    assert max(levels[name] for name in dark) < 0.01 * min(
        level for name, level in levels.items() if name not in dark
    )


def test_every_sequence_keeps_frames_without_faults(campaign: Written) -> None:
    science = campaign.files[(campaign.files["kind"] == "science")]
    clean = science[science["fault"] == ""]
    sequences = Counter(zip(clean["night"], clean["observation_id"]))
    assert len(sequences) == NIGHTS * TARGETS * 2 * 2
    assert min(sequences.values()) >= 3


# Pixels -----------------------------------------------------------------------------------------


def f2_group(campaign: Written, instrument_filter: str) -> tuple[Table, Table, dict[str, Any]]:
    """Frames and stars of the first target of FLAMINGOS-2 in a filter, and the scene."""
    (folder, *_) = sorted((campaign.out / "truth").glob(f"{instrument_filter}_J*"))
    frames = Table.read(folder / "frames.ecsv", fill_values=None)
    stars = Table.read(folder / "catalog.ecsv")
    return frames, stars, json.loads((folder / "scene.json").read_text())


@pytest.mark.parametrize("kind", ["f2_Ks", "f2_J"])
def test_the_same_stars_are_where_the_truth_says_in_all_nights(
    campaign: Written, kind: str
) -> None:
    frames, stars, scene = f2_group(campaign, kind)
    chip = Chip(*(np.array(scene["chip"][axis]) for axis in "uv"))
    by_name = {Path(path).name.removesuffix(".bz2"): path for path in campaign.files["path"]}
    flat = fits.getdata(campaign.out / "truth" / kind / "flat_1.fits", "FLAT")
    nights = set()
    for row in frames:
        name = by_name[row["file"]]
        if row["fault"] not in ("", "trail"):
            continue
        pose = Pose(row["ra0"], row["dec0"], row["pa"], row["plate_scale"], np.zeros((2, 7)))
        x, y = sky_to_pixel(chip, pose, np.array(stars["ra"]), np.array(stars["dec"]))
        corner = (2048 - 2 * SIZE) // 2
        x, y = x - 1 - corner, y - 1 - corner
        inside = np.flatnonzero((np.abs(x - SIZE) < SIZE - 6) & (np.abs(y - SIZE) < SIZE - 6))
        star = inside[np.argmin(stars["mag"][inside])]
        image = fits.getdata(campaign.path(name))[0] / flat
        near = image[int(y[star]) - 5 : int(y[star]) + 7, int(x[star]) - 5 : int(x[star]) + 7]
        top = np.median(near[4:8, 4:8]) - np.median(image)
        # Four times its own noise; on the last night, in bad seeing, the top is as much lower.
        lower = WIDER**2 if row["file"][1:9] == "20170507" else 1.0
        assert top * lower > np.sqrt(np.median(image) / GAIN), (name, top)
        nights.add(row["file"][1:9])
    assert len(nights) == NIGHTS


def test_a_cloud_takes_the_light_of_stars(campaign: Written) -> None:
    (name,) = campaign.of_fault("cloud")
    tables = [Table.read(path) for path in (campaign.out / "truth").glob("*/frames.ecsv")]
    scales = {row["file"]: row["scale"] for table in tables for row in table}
    assert scales[name.split("/")[1]] == 0.05
    row = campaign.files.loc[name]
    fellows = campaign.files[
        (campaign.files["observation_id"] == row["observation_id"])
        & (campaign.files["kind"] == "science")
        & (campaign.files["fault"] == "")
    ]["path"]

    def brightest(path: str) -> float:
        extensions = range(1, 2 if row["instrument"] == "f2" else 5)
        images = [fits.getdata(campaign.path(path), n).astype(float) for n in extensions]
        return max(np.percentile(image, 99.7) - np.median(image) for image in images)

    assert brightest(name) < 0.5 * np.median([brightest(path) for path in fellows])


def test_a_trail_is_where_the_truth_says(campaign: Written, tmp_path: Path) -> None:
    options = {"instruments": "f2", "nights": 1, "size": 128, "n_flats": 1, "n_darks": 1}
    clean = written(tmp_path / "clean", compress="none", **options)
    marred = written(tmp_path / "marred", faults="trail", compress="none", **options)
    (name,) = marred.of_fault("trail")
    one, two = (fits.getdata(found.path(name))[0].astype(float) for found in (clean, marred))
    trail = marred.faults["files"][name]
    (folder,) = (marred.out / "truth").glob("f2_Ks_J*")
    chip = json.loads((folder / "scene.json").read_text())["chip"]
    y, x = np.mgrid[: one.shape[0], : one.shape[1]] + (2048 - one.shape[0]) // 2 + 1.0
    u, v = (c[0] + c[1] * x + c[2] * y for c in (chip["u"], chip["v"]))  # linear optics
    angle = np.radians(trail["angle"])
    away = np.abs(np.cos(angle) * (v - trail["v"]) - np.sin(angle) * (u - trail["u"]))
    light = (two - one) * GAIN
    assert np.median(light[away < 0.1]) == pytest.approx(trail["peak"], rel=0.15)
    assert abs(np.median(light[away > 2.0])) < 0.02 * trail["peak"]
    others = [row["path"] for row in clean.files if row["path"] != name]
    assert len(others) > 5
    for path in others:  # a fault of a frame changes no other file
        assert clean.path(path).read_bytes() == marred.path(path).read_bytes()


def test_a_stale_pointing_is_that_of_the_frame_before(tmp_path: Path) -> None:
    options = {"instruments": "gsaoi", "nights": 1, "size": 64, "n_flats": 1, "compress": "none"}
    found = written(tmp_path, faults="pointing", **options)
    (stale,) = found.of_fault("pointing")
    names = sorted(row["path"] for row in found.files if row["kind"] in ("science", "sky"))
    places = {name: fits.getheader(found.path(name), 1) for name in names}

    def apart(one: str, two: str) -> float:
        values = [(places[name]["CRVAL1"], places[name]["CRVAL2"]) for name in (one, two)]
        return 3600.0 * float(np.hypot(*np.subtract(*values)))

    before = names[names.index(stale) - 1]
    assert found.files.loc[before]["kind"] == "science" and found.files.loc[stale]["kind"] == "sky"
    assert apart(stale, before) < 1e-6
    others = [name for name in names if found.files.loc[name]["kind"] == "sky" and name != stale]
    assert others and all(apart(name, before) > 200.0 for name in others)


# Options ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    options = {"size": SIZE, "faults": "all", "n_flats": 1, "n_darks": 1}
    one, two = (written(tmp_path / name, **options).out for name in ("one", "two"))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert len(names) > 50
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    three = plan_campaign(campaign_options(**options, seed=2))
    assert {f.exposure.file: f.fault for f in three.frames} != {
        f.exposure.file: f.fault for f in plan_campaign(campaign_options(**options)).frames
    }


def test_faults_without_a_place_are_left_out_or_refused() -> None:
    small = {"instruments": "gsaoi", "nights": 1, "n_science": 4}
    faults = plan_campaign(campaign_options(**small, faults="all")).faults
    assert set(faults.left_out) == {
        "spectrum",
        "renamed",
        "seeing",
        "noflats",
        "lampoff",
        "unreadable",
        "missing",
        "cloud",
        "exptime",
    }
    with pytest.raises(GdaskError, match="no place for fault spectrum: GSAOI takes none"):
        plan_campaign(campaign_options(**small, faults="trail,spectrum"))
    plan = plan_campaign(campaign_options(**small, faults="noflats"))  # asked for: all is blocked
    assert not [frame for frame in plan.frames if frame.block.kind.startswith("flat")]
    one_filter = {"instruments": "gsaoi", "filters": "J", "n_science": 6, "faults": "all"}
    for nights, left_out in ((2, {"lampoff"}), (3, set())):  # a night with good flats stays
        options = campaign_options(**one_filter, nights=nights)
        assert set(plan_campaign(options).faults.left_out) - {"spectrum"} == left_out


@pytest.mark.parametrize("seed", range(12))
def test_no_two_frames_share_a_name_a_label_or_a_moment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices: dict[str, list[Any]] = {
        "nights": [1, 2, 4],
        "targets": [1, 2, 4],
        "filters": ["Kshort", "J", "Ks,J", "H,Kshort,J"],
        "instruments": ["gsaoi", "f2", "gsaoi,f2", "f2,gsaoi"],
        "n_science": [1, 3, 5, 9],
        "n_sky": [0, 1, 8],
        "n_flats": [1, 10],
        "date": ["20131121", "20170505", "20240229"],
    }
    options = {name: values[rng.integers(len(values))] for name, values in choices.items()}
    plan = plan_campaign(campaign_options(seed=seed, faults="all", **options))
    exposures = [frame.exposure for frame in plan.frames]
    assert len({exposure.file for exposure in exposures}) == len(exposures)
    labels = {(exposure.identity, exposure.number) for exposure in exposures}
    assert len(labels) == len(exposures)
    for one, two in itertools.pairwise(exposures):
        end = one.mjd + one.exptime * one.coadds / 86400
        assert end < two.mjd, (options, one.file, two.file)
    counts = Counter(frame.fault for frame in plan.frames)
    assert all(
        counts[kind] for kind in plan.faults.kinds if kind not in ("noflats", "renamed", "seeing")
    )


@pytest.mark.parametrize("nights, days_apart, seed", [(4, 20, 5), (2, 1, 9)])
def test_nights_may_lie_apart(nights: int, days_apart: int, seed: int) -> None:
    plan = plan_campaign(campaign_options(nights=nights, days_apart=days_apart, seed=seed))
    dates = sorted({frame.exposure.file[1:9] for frame in plan.frames})
    first = datetime(2017, 5, 5)
    assert dates == [f"{first + timedelta(days=days_apart * n):%Y%m%d}" for n in range(nights)]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"filters": "Kshort,Y"}, "filters of gsaoi: 'Y', expected one or more of Z,J,H"),
        ({"filters": "kshort"}, "did you mean 'Kshort'"),
        ({"instruments": "gmos"}, "instruments: 'gmos', expected one or more of gsaoi,f2"),
        ({"faults": "clouds"}, "did you mean 'cloud'"),
        ({"size": 1024}, "take 1020 or 1028"),
        ({"date": "20161231"}, "all from 20170101"),
        ({"targets": 12, "filters": "J,H,Kshort"}, "take fewer targets, filters or frames"),
        ({"nights": 0}, "nights is 0, expected 1 to 366"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(GdaskError, match=said):
        plan_campaign(campaign_options(**options))


def test_what_is_there_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.fits").write_bytes(b"mine")
    assert command.main(["campaign", str(tmp_path)]) == 2
    assert "raw: is not empty" in capsys.readouterr().err
    assert not (tmp_path / "truth").exists()


def test_the_command_lists_faults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["campaign", "--list-faults"])
    assert ended.value.code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FAULTS)


def test_the_command_writes_a_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--instruments f2 --nights 1 --size 64 --n-flats 1 --n-darks 1 --faults cloud"
    assert command.main(["campaign", str(tmp_path / "out"), *options.split()]) == 0
    said = capsys.readouterr().err
    assert "9 raw files" in said and "1 files have faults" in said
