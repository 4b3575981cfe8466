"""`Reduce` as scripts use it: attributes, calibrations given in any form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gdask import Reduce
from gdask.model import UsageError


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ucal", "ucals"),
        ("uparm", "uparms"),
        ("recipe_name", "recipename"),
        ("Strict", "strict"),
        ("output", ""),
    ],
)
def test_an_unknown_attribute_is_refused(name: str, nearest: str) -> None:
    reduction = Reduce()
    with pytest.raises(UsageError, match=f"Reduce.{name}: no such attribute") as caught:
        setattr(reduction, name, "x")
    assert f"did you mean {nearest}?" in str(caught.value) or not nearest
    assert not hasattr(reduction, name)


def test_all_attributes_can_be_set_and_subclasses_may_have_their_own() -> None:
    reduction = Reduce()
    for name, value in vars(Reduce()).items():
        setattr(reduction, name, value)

    class Mine(Reduce):
        note = ""

    Mine().note = "seen"


FORMS = {
    "dictionary": lambda path: {"processed_bpm": path},
    "path": lambda path: {"processed_bpm": Path(path)},
    "list of one": lambda path: {"processed_bpm": [path]},
    "text": lambda path: f"processed_bpm:{path}",
    "texts": lambda path: [f"processed_bpm:{path}"],
    "pairs": lambda path: [("processed_bpm", path)],
    "pair": lambda path: ("processed_bpm", path),
    "dictionaries": lambda path: [{"processed_bpm": path}],
    "twice the same": lambda path: f"processed_bpm:{path}, processed_bpm:{path}",
}


@pytest.mark.parametrize("form", FORMS)
def test_calibrations_in_any_form(night: object, form: str) -> None:
    reduction = Reduce()
    reduction.ucals = FORMS[form](night.bpm)
    assert reduction._calibrations() == {"processed_bpm": night.bpm}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"procesed_bpm": "x.fits"}, "did you mean processed_bpm"),
        ("procesed_bpm:x.fits", "did you mean processed_bpm"),
        (["procesed_bpm:x.fits"], "did you mean processed_bpm"),
        ("x.fits", "expected KIND:FILE"),
        (["x.fits"], "expected KIND:FILE"),
        ({"processed_bpm": ["a.fits", "b.fits"]}, "expected KIND:FILE"),
        ({"processed_bpm": None}, "expected KIND:FILE"),
        (7, "expected KIND:FILE"),
        ("processed_bpm:gone.fits", "gone.fits: no such file"),
    ],
)
def test_calibrations_that_are_not_understood(
    workspace: Path, night: object, given: object, message: str
) -> None:
    reduction = Reduce()
    reduction.files.append(night.science[0])
    reduction.ucals = given
    with pytest.raises(UsageError, match=message):
        reduction.runr()


def test_numpy_that_raises_does_not_stop_a_reduction(
    calibrated: Path, night: object, caplog: pytest.LogCaptureFixture
) -> None:
    reduction = Reduce()
    reduction.files.extend(night.sequence)
    reduction.uparms = {"prepare:bad_wcs": "fix"}
    with np.errstate(all="raise"):
        reduction.runr()
        assert np.geterr()["divide"] == "raise"  # the caller's own is as it was
    assert len(reduction.output_filenames) == 1
