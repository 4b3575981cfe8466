"""Frames that parameters name, checked against the list before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from gdask.recipes import gsaoi_image

from gdask import Reduce
from gdask.model import GdaskError, UsageError
from gdask.reduction.screening import check_named_frames, open_all, with_names_listed


@pytest.mark.parametrize("parameter", ["separateSky:ref_sky", "ref_obj"])
def test_an_unknown_name_stops_before_any_work(
    workspace: Path, night: object, no_compute: None, parameter: str
) -> None:
    reduction = Reduce()
    reduction.files.extend(night.sequence)
    reduction.uparms[parameter] = "S20170505S9999"
    with pytest.raises(UsageError, match="no frame 'S20170505S9999' .*did you mean S20170505S"):
        reduction.runr()
    assert not list(workspace.glob("*.fits"))


def test_names_of_files_set_aside_and_lists_of_python_are_known(
    night: object, tmp_path: Path
) -> None:
    frames = open_all(night.sequence).frames
    frames = with_names_listed(frames, ["S20170505S0999.fits"])
    for text in (night.sky, " ".join(night.sky), ["S20170505S0999"]):
        layers = [("user", {"separate_sky:ref_sky": text})]
        check_named_frames(frames, gsaoi_image.reduce, layers)
    with pytest.raises(GdaskError, match="no frame 'S20170505S0998'"):
        layers = [("config", {"ref_sky": [*night.sky, "S20170505S0998"]})]
        check_named_frames(frames, gsaoi_image.reduce, layers)
