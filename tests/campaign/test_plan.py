"""Plans of campaigns: groups, calibrations, reasons. No pixel is read."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest

from gdask.campaign.describe import RawFile
from gdask.campaign.groups import make_groups, name_targets
from gdask.campaign.job import Campaign
from gdask.campaign.plan import make_plan
from gdask.campaign.settings import Settings, new_flag
from gdask.model import UsageError

NUMBERS = itertools.count(1)


def raw(kind: str, time: str, **given: Any) -> RawFile:
    """Give a file as a scan would describe it: of GSAOI, in Kshort, 60 s, if nothing else is said.

    time: UT, 'YYYY-MM-DDTHH:MM'.
    """
    from datetime import datetime

    from gdask.model import night_of

    number = next(NUMBERS)
    instrument = given.pop("instrument", "GSAOI")
    when = datetime.fromisoformat(time)
    night = night_of(when).strftime("%Y%m%d")
    name = given.pop("name", f"S{night}S{number:04d}.fits")
    arrays = 4 if instrument == "GSAOI" else 1
    size = given.pop("size", 2048)
    row = {
        "instrument": instrument,
        "ut_datetime": when.isoformat(),
        "filter_name": given.pop("filter", "Kshort"),
        "exposure_time": given.pop("exposure", 60.0 if kind == "science" else 8.0),
        "coadds": 1,
        "read_mode": "FOWLER" if instrument == "GSAOI" else "1",
        "read_speed_setting": None,
        "lyot_stop": "f/16_G5830",
        "camera": None,
        "disperser": "Open",
        "focal_plane_mask": "None",
        "detector_x_bin": 1,
        "detector_y_bin": 1,
        "array_name": [f"A{k}" for k in range(arrays)],
        "detector_section": [[0, size, 0, size]] * arrays,
        "shape": [[size, size]] * arrays,
        "caltype": kind if kind.startswith("processed") else None,
    }
    tags = {"science": ("IMAGE", "RAW"), "flat": ("CAL", "FLAT", "IMAGE")}.get(kind, ("CAL",))
    values: dict[str, Any] = {
        "label": f"GS-2017A-Q-29-{number}-001",
        "instrument": instrument,
        "tags": (*tags, instrument),
        "night": night,
        "time": when.isoformat(),
        "object": "NGC5128",
        "observation_class": "science",
        "program": "GS-2017A-Q-29",
        "observation": "GS-2017A-Q-29-21",
        "ra": 201.0 if kind == "science" else None,
        "dec": -43.0 if kind == "science" else None,
        "guided": True if kind == "science" else None,
        "field_of_view": 83.5 if instrument == "GSAOI" else 368.0,
        "row": row,
    }
    path = given.pop("path", f"/data/{name}")
    return RawFile(path, 1000, 1, name, kind, **(values | given))


def frames(night: int, count: int = 4, hour: int = 3, **given: Any) -> list[RawFile]:
    return [
        raw("science", f"2017-05-{night:02d}T{hour:02d}:{k:02d}", **given) for k in range(count)
    ]


def flats(night: int, **given: Any) -> list[RawFile]:
    """Dome flats of the morning, lamp on and off."""
    return [
        raw("flat", f"2017-05-{night:02d}T11:{k:02d}", lamp=lamp, **given)
        for k, lamp in enumerate(("on", "on", "off", "off"))
    ]


def chosen(campaign: Campaign, job: str, caltype: str = "processed_flat") -> Any:
    return next(one for one in campaign.job(job).calibrations if one.caltype == caltype)


def test_a_night_turns_at_18_h_ut_and_flats_go_with_it() -> None:
    afternoon = [raw("flat", "2017-05-04T19:00", lamp=lamp) for lamp in ("on", "off")]
    morning = [raw("flat", "2017-05-05T12:00", lamp=lamp) for lamp in ("on", "off")]
    evening = [raw("science", f"2017-05-04T23:{k}0") for k in range(2)]
    later = [raw("science", f"2017-05-05T05:{k}0") for k in range(2)]
    groups = make_groups([*afternoon, *morning, *evening, *later]).groups
    assert [(g.kind, g.night, len(g.files)) for g in groups] == [
        ("flat", "20170505", 4),
        ("science", "20170505", 4),
    ]


def test_the_same_plan_for_any_order_names_and_places() -> None:
    files = [*frames(5), *frames(6), *flats(5), *flats(6), *frames(6, object="M83", ra=204.0)]
    plain = make_plan(files)
    mixed = [
        file._replace(path=f"/other/{k}.fits.bz2", name=f"copy{k}.fits")
        for k, file in enumerate(files)
    ]
    random.Random(1).shuffle(mixed)
    assert make_plan(mixed).jobs == plain.jobs
    assert [job.id for job in plain.jobs if job.kind == "stack"] == [
        "stack-GSAOI-M83-Kshort-20170506",
        "stack-GSAOI-NGC5128-Kshort-20170505",
        "stack-GSAOI-NGC5128-Kshort-20170506",
        "stack-GSAOI-NGC5128-Kshort-all",
    ]
    together = plain.job("stack-GSAOI-NGC5128-Kshort-all")
    assert together.takes == (
        "frames-GSAOI-NGC5128-Kshort-20170505",
        "frames-GSAOI-NGC5128-Kshort-20170506",
    )


def test_every_file_has_one_row_and_they_add_up() -> None:
    other = RawFile("/data/x.fits", 1, 1, "x.fits", "not ours", "is of instrument 'GMOS-S'")
    files = [*frames(5), *flats(5), *frames(7, count=1), other, *flats(5, filter="J")]
    rows = make_plan(files).rows
    assert sorted(row["path"] for row in rows) == sorted(file.path for file in files)
    assert Counter(row["state"] for row in rows) == {"used": 8, "set aside": 5, "not ours": 1}
    assert all(row["why"] for row in rows if row["state"] != "used")
    alone = next(row for row in rows if row["file"].startswith("S20170507"))
    assert "alone" in alone["why"]


def test_targets_are_told_by_position_and_programme_not_by_name() -> None:
    named = [
        *frames(5, object="NGC 5128"),
        *frames(5, hour=4, object="cen A"),  # the same place
        *frames(
            5, hour=5, object="NGC 5128", ra=202.0, observation="O-2"
        ),  # another place of the same name
        *frames(5, hour=6, object="NGC 5128", program="GS-2018A-Q-1"),  # another programme
        *frames(5, hour=7, object="sky", ra=201.03, guided=False),  # sky of the first observation
    ]
    names = name_targets(named)
    groups = [{names[file.path] for file in named[k : k + 4]} for k in range(0, 20, 4)]
    assert all(len(group) == 1 for group in groups)
    first, same, elsewhere, other, sky = (group.pop() for group in groups)
    assert first == same == sky == "NGC_5128"
    assert len({first, elsewhere, other}) == 3


@pytest.mark.parametrize("how", ["exclude", "flag"])
def test_taking_out_frames_renames_nothing(how: str) -> None:
    """Neither targets, nor nights of pooled darks, nor what tells set-ups apart."""
    elsewhere = {"ra": 202.0, "observation": "O-2"}
    files = [
        *frames(5, count=3, object="J1109"),
        *frames(5, count=3, hour=4, object="j1109_-"),
        *frames(5, hour=5, object="J1109", **elsewhere),
        *frames(6, object="M83", ra=204.0, exposure=30.0),
        *frames(6, object="M83", ra=204.0, exposure=60.0),
        *[raw("dark", f"2017-05-0{k}T12:00", instrument="F2") for k in (5, 6)],
        *frames(5, instrument="F2", program="GS-2017A-Q-61", exposure=8.0),
    ]
    every = make_plan(files)
    for out in (files[:1], files[:3], files[6:7], files[10:14], files[18:19]):
        names = [one.name for one in out]
        if how == "exclude":
            left = make_plan(files, Settings(exclude=dict.fromkeys(names, "lost")))
        else:
            left = make_plan(files, flags=[new_flag(n, "guiding", because="lost") for n in names])
        folders = {job.id: job.folder for job in left.jobs}
        assert folders.items() <= {job.id: job.folder for job in every.jobs}.items()
        assert not {one.key for one in out} & {key for job in left.jobs for key in job.inputs}
        assert Counter(row["state"] for row in left.rows)["excluded"] == len(out)


def test_the_nearest_flat_is_taken_with_its_level_and_the_next_best() -> None:
    files = [*frames(6), *flats(5), *flats(12)]
    choice = chosen(make_plan(files), "frames-GSAOI-NGC5128-Kshort-20170506")
    assert (choice.source, choice.level) == ("flat-GSAOI-20170505-Kshort", 0)
    assert any("flat-GSAOI-20170512-Kshort" in miss for miss in choice.misses)
    far = make_plan([*frames(6), *flats(12)])
    assert chosen(far, "frames-GSAOI-NGC5128-Kshort-20170506").level == 1
    assert far.job("frames-GSAOI-NGC5128-Kshort-20170506").level == 1
    strict = make_plan([*frames(6), *flats(12)], Settings(accept_level=0))
    assert "level 1 is not accepted" in strict.job("frames-GSAOI-NGC5128-Kshort-20170506").blocked


def test_too_old_a_calibration_blocks_unless_it_is_accepted() -> None:
    old = [raw("flat", f"2017-03-01T11:0{k}", lamp=lamp) for k, lamp in enumerate(("on", "off"))]
    name = "frames-GSAOI-NGC5128-Kshort-20170506"
    blocked = make_plan([*frames(6), *old])
    assert "time: 65.7 d apart, limit 30 d" in blocked.job(name).blocked
    assert blocked.job("stack-GSAOI-NGC5128-Kshort-20170506").blocked
    accepted = make_plan([*frames(6), *old], Settings(accept_level=2))
    assert not accepted.job(name).blocked and accepted.job(name).level == 2


def test_another_filter_blocks_and_names_the_rule() -> None:
    plan = make_plan([*frames(6), *flats(6, filter="J")])
    assert (
        "filter: Kshort wanted, J found" in plan.job("frames-GSAOI-NGC5128-Kshort-20170506").blocked
    )


def test_a_calibration_that_failed_is_replaced_by_the_next_best() -> None:
    files = [*frames(6), *flats(5), *flats(8)]
    plan = make_plan(files, failed={"flat-GSAOI-20170505-Kshort": "its job failed"})
    choice = chosen(plan, "frames-GSAOI-NGC5128-Kshort-20170506")
    assert choice.source == "flat-GSAOI-20170508-Kshort"
    assert "flat-GSAOI-20170505-Kshort: its job failed" in choice.misses


def test_flats_of_two_nights_are_two_flats_and_lamp_off_may_be_of_another() -> None:
    on = [file for file in flats(5) if file.lamp == "on"]
    off = [file for file in flats(8) if file.lamp == "off"]
    plan = make_plan([*frames(6), *on, *off])
    (flat,) = [job for job in plan.jobs if job.kind == "flat"]
    assert len(flat.inputs) == 4 and flat.notes == ("frames with the lamp off of 20170508",)
    two = [
        job
        for job in make_plan([*frames(5), *frames(8), *flats(5), *flats(8)]).jobs
        if job.kind == "flat"
    ]
    assert [job.id for job in two] == ["flat-GSAOI-20170505-Kshort", "flat-GSAOI-20170508-Kshort"]


def f2_night() -> list[RawFile]:
    f2 = {"instrument": "F2", "filter": "Y"}
    return [
        *frames(6, **f2, exposure=120.0),
        *(raw("flat", f"2017-05-06T11:0{k}", lamp=lamp, exposure=20.0, **f2)
          for k, lamp in enumerate(("on", "on", "off", "off"))),
        *(raw("dark", f"2017-05-05T10:0{k}", exposure=120.0, **f2) for k in range(3)),
        *(raw("dark", f"2017-05-07T10:0{k}", exposure=120.0, **f2) for k in range(2)),
        *(raw("dark", f"2017-05-06T10:0{k}", exposure=2.0, **f2) for k in range(3)),
        *(raw("dark", f"2017-05-06T10:1{k}", exposure=33.0, **f2) for k in range(3)),
    ]  # fmt: skip


def test_an_f2_night_needs_dark_flat_and_mask_and_leaves_other_darks() -> None:
    plan = make_plan(f2_night())
    assert [job.id for job in plan.jobs] == [
        "dark-F2-20170505-120s",
        "bpm-F2-20170506",
        "flat-F2-20170506-Y",
        "frames-F2-NGC5128-Y-20170506",
        "stack-F2-NGC5128-Y-20170506",
    ]
    assert len(plan.job("dark-F2-20170505-120s").inputs) == 5  # of neighbouring nights
    frame = plan.job("frames-F2-NGC5128-Y-20170506")
    assert set(frame.needs) == {"dark-F2-20170505-120s", "bpm-F2-20170506", "flat-F2-20170506-Y"}
    unused = [row for row in plan.rows if row["state"] != "used"]
    assert len(unused) == 3 and all("no frame needs this dark" in row["why"] for row in unused)


def test_exposures_and_sizes_that_differ_are_reduced_apart_with_names_that_say_it() -> None:
    files = [*frames(6), *frames(6, hour=5, exposure=20.0), *flats(6)]
    names = [job.id for job in make_plan(files).jobs if job.kind == "frames"]
    assert names == [
        "frames-GSAOI-NGC5128-Kshort-20170506-20s",
        "frames-GSAOI-NGC5128-Kshort-20170506-60s",
    ]


def test_what_a_person_says_holds() -> None:
    files = [*frames(5), *frames(6), *flats(5)]
    name = files[0].name
    plan = make_plan(
        files,
        Settings(
            exclude={name.removesuffix(".fits"): "guide star lost"},
            parameters={
                "detectSources:threshold": 3.0,
                "NGC5128": {"skyCorrect:offset_sky": False},
            },
            nights="apart",
        ),
        [new_flag(files[1].name, "trail", because="satellite"),
         new_flag(files[2].name, "cloud", "stack", because="thin"),
         new_flag(files[3].name, "cloud", "sky", because="thin")],
    )  # fmt: skip
    rows = {row["file"]: row for row in plan.rows}
    assert rows[name]["state"] == "excluded" and "guide star lost" in rows[name]["why"]
    assert "flagged trail (satellite)" in rows[files[1].name]["why"]
    frame = plan.job("frames-GSAOI-NGC5128-Kshort-20170505")
    assert len(frame.inputs) == 2
    given = dict(frame.parameters)
    assert given["skyCorrect:offset_sky"] == "False" and given["detectSources:threshold"] == "3.0"
    assert given["associateSky:exclude"] == files[3].name
    assert plan.job("stack-GSAOI-NGC5128-Kshort-20170505").not_stacked == (files[2].name,)
    assert not any(job.night == "all" for job in plan.jobs)


def test_a_calibration_is_good_until_a_date() -> None:
    files = [*frames(6), *frames(9), *flats(7)]
    flag = new_flag("flat-GSAOI-20170507-Kshort", good_until="2017-05-08")
    plan = make_plan(files, flags=[flag])
    assert not plan.job("frames-GSAOI-NGC5128-Kshort-20170506").blocked
    assert "good until 2017-05-08" in plan.job("frames-GSAOI-NGC5128-Kshort-20170509").blocked


def test_pinned_jobs_hold_and_unknown_ones_are_refused() -> None:
    files = [*frames(6), *flats(6)]
    name = "frames-GSAOI-NGC5128-Kshort-20170506"
    keys = [file.key for file in files[:3]]
    plan = make_plan(files, Settings(jobs={name: {"inputs": keys}}))
    assert plan.job(name).inputs == tuple(keys)
    with pytest.raises(UsageError, match="no such job; did you mean frames-GSAOI"):
        make_plan(files, Settings(jobs={"frames-GSAOI-NGC5128-Kshort-20170507": {}}))
    with pytest.raises(UsageError, match="no such exposure"):
        make_plan(files, Settings(jobs={name: {"inputs": ["x@y"]}}))
    with pytest.raises(UsageError, match="zzz: no such job in the plan.*gdask plan OUT lists them"):
        plan.job("zzz")


@pytest.mark.parametrize(("policy", "source"), [
    ("remake", "flat-GSAOI-20170506-Kshort"),
    ("reuse", "/data/S20170506S9999_flat.fits"),
])  # fmt: skip
def test_processed_calibrations_among_the_files(policy: str, source: str) -> None:
    found = raw("processed_flat", "2017-05-06T11:00", name="S20170506S9999_flat.fits")
    plan = make_plan([*frames(6), *flats(6), found], Settings(calibrations=policy))
    assert chosen(plan, "frames-GSAOI-NGC5128-Kshort-20170506").source == source


@pytest.mark.parametrize(("given", "message"), [
    ({"parameters": {"NGC5182": {"a:b": 1}}}, "NGC5182: no such target.*did you mean NGC5128"),
    ({"parameters": {"NGC5128/J": {"a:b": 1}}}, "NGC5128/J: no such target, filter"),
    ({"parameters": {"frame": {"a:b": 1}}}, "frame: no such .*did you mean frames"),
    ({"catalogs": {"NGC5182": "x"}}, r"\[catalogs\]: NGC5182: no such target"),
    ({"skies": {"NGC5182": []}}, r"\[skies\]: NGC5182: no such target"),
    ({"skies": {"NGC5128": ["S1"]}}, r"\[skies\]: S1: no frame of NGC5128 that is used"),
])  # fmt: skip
def test_a_word_of_campaign_toml_that_means_nothing_is_refused(given: Any, message: str) -> None:
    files = [*frames(6), *flats(5)]
    with pytest.raises(UsageError, match=message):
        make_plan(files, Settings(**given))
    good = {"parameters": {"NGC5128": {}, "Kshort": {}, "NGC5128/Kshort": {}, "flat": {}}}
    make_plan(
        files, Settings(**good, catalogs={"NGC5128": "x"}, skies={"NGC5128": [files[0].name]})
    )


def test_the_row_of_a_used_file_says_what_flags_change() -> None:
    files = [*frames(6), *flats(5)]
    flags = [
        new_flag(files[0].name, "cloud", "stack", because="thin"),
        new_flag(files[0].name, header="AIRMASS=1.2"),
    ]
    plan = make_plan(files, flags=flags)
    said = {row["file"]: (row["state"], row["why"]) for row in plan.rows}
    assert said[files[0].name] == ("used", "not for stack: cloud (thin); with AIRMASS=1.2")
    assert said[files[1].name] == ("used", "")


@pytest.mark.parametrize(("calibrations", "message"), [
    ({"processed_flat": "flat-nowhere"}, "flat-nowhere: neither a job of the plan nor a file"),
    ({"processed_flt": "x"}, "processed_flt: the job takes processed_flat"),
])  # fmt: skip
def test_a_pinned_calibration_that_is_not_there_is_refused(calibrations: Any, message: str) -> None:
    job = "frames-GSAOI-NGC5128-Kshort-20170506"
    with pytest.raises(UsageError, match=message):
        make_plan([*frames(6), *flats(5)], Settings(jobs={job: {"calibrations": calibrations}}))


@pytest.mark.parametrize("folder", ["/data/again", "/data/S"])
def test_the_other_copy_is_taken_where_the_first_is_excluded(folder: str) -> None:
    """Copies of one name are told apart by their folders, those of other names by these."""
    first, *others = [*frames(6), *flats(6)]
    other = first._replace(path=f"{folder}/{first.name}", kind="duplicate", why="OTHER pixels")
    files = sorted([first, *others, other], key=lambda file: file.path)
    plan = make_plan(files, Settings(exclude={first.path: "damaged in the download"}))
    rows = {row["path"]: row for row in plan.rows}
    assert len(rows) == len(files)
    assert rows[first.path]["state"] == "excluded" and not rows[first.path]["jobs"]
    assert rows[other.path]["state"] == "used"
    job = plan.job("frames-GSAOI-NGC5128-Kshort-20170506")
    assert job.inputs == make_plan(files).job(job.id).inputs
    (used,) = [one for one in plan.files if one.key == first.key and one.kind == "science"]
    assert used.path == other.path
    none = make_plan(files, Settings(exclude={first.name: "damaged"}))
    assert {row["state"] for row in none.rows if row["file"] == first.name} == {"excluded"}


def test_an_array_that_is_flagged_is_a_parameter_of_the_jobs_of_its_file() -> None:
    files = [*frames(6), *flats(6)]
    flag = new_flag(files[1].name, "bad", because="no light on it", array=2)
    plan = make_plan(files, flags=[flag])
    bad = {job.id: dict(job.parameters).get("addDQ:bad_arrays") for job in plan.jobs}
    job = "frames-GSAOI-NGC5128-Kshort-20170506"
    assert {name: text for name, text in bad.items() if text} == {job: f"{files[1].name}:2"}
    (row,) = [row for row in plan.rows if row["path"] == files[1].path]
    assert row["state"] == "used" and row["why"] == "not array 2: bad (no light on it)"


def test_words_of_campaign_toml_that_there_are_have_no_empty_one() -> None:
    dark = raw("dark", "2017-05-05T20:00", instrument="F2", filter="")
    with pytest.raises(UsageError, match=r"there are [^, ]"):
        make_plan([*frames(6), *flats(5), dark], Settings(parameters={"NGC5182": {"a:b": 1}}))
