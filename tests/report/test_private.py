"""What is taken out of texts before they are shown: paths, and names of users and hosts."""

from __future__ import annotations

import getpass
import os

from gdask.report.private import cleaned, cleaner

OUT = "/data/my night/reduced"


def test_paths_become_names_and_units_stay() -> None:
    clean = cleaner(OUT, ["/data/my night/raw"])
    assert clean(f"error: {OUT}/.campaign/work/a/S1.fits: not written") == (
        "error: reduced/.campaign/work/a/S1.fits: not written"
    )
    assert clean("reduce /data/my night/raw/S2.fits -c /etc/x.toml") == "reduce S2.fits -c x.toml"
    assert clean("processed_bpm:/archive/bpm.fits") == "processed_bpm:bpm.fits"
    for text in ("14.1 mag/arcsec2", "3 e-/s", "a ratio of 3/4", "1/f noise", "f/32"):
        assert clean(text) == text
    assert "/" not in clean("cannot open '/home/someone/secret'")


def test_names_of_host_and_user_go_and_internal_keeps_all() -> None:
    host, user = os.uname().nodename, getpass.getuser()
    text = f"job on {host} by {user}: /tmp/x"
    assert cleaner(OUT)(text) == "job on HOST by USER: x"
    assert cleaner(OUT, internal=True)(text) == text


def test_every_text_of_a_value_is_cleaned() -> None:
    value = {"a": ["/x/y", {"b": "/u/v/w"}], "n": 3, "none": None}
    assert cleaned(value, cleaner(OUT)) == {"a": ["y", {"b": "w"}], "n": 3, "none": None}
