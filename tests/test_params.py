"""Parameters of steps: from signatures, through layers, with messages that help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdask import params, steps
from gdask.cli import reduce, showpars, showrecipes
from gdask.model import GdaskError, UsageError
from gdask.params import Range


def example(
    frames: tuple,
    other: object = None,
    *,
    limit: Annotated[float, Range(0.5, 10)] = 3.0,
    number: Annotated[int, Range(1, None)] | None = None,
    mode: Literal["exit", "fix", "new"] = "exit",
    flag: bool = True,
    names: str = "",
    file: str | None = None,
) -> tuple:
    """An example. [exampleStep]

    Parameters
    ----------
    limit
        Arcsec of something.
    number
        How many.
    flag, names
        Two together.
    """
    return frames


STEPS = {"example": example, "sky_correct": steps.sky_correct}


def test_the_signature_is_the_table() -> None:
    table = params.parameters(example)
    assert list(table) == [
        "limit",
        "number",
        "mode",
        "flag",
        "names",
        "file",
        "skip_primitive",
        "write_outputs",
        "suffix",
    ]
    assert [table[n].kind for n in ("limit", "number", "mode", "flag", "names", "file")] == [
        float,
        int,
        str,
        bool,
        str,
        str,
    ]
    assert [n for n, p in table.items() if p.optional] == ["number", "file", "suffix"]
    assert table["limit"].limits == (0.5, 10) and table["number"].limits == (1, None)
    assert (
        table["limit"].help == "Arcsec of something."
        and table["flag"].help == table["names"].help == "Two together."
    )


@pytest.mark.parametrize("name", steps.__all__)
def test_every_step_explains_all_its_parameters(name: str) -> None:
    for parameter in params.parameters(getattr(steps, name)).values():
        assert parameter.help, f"{name}:{parameter.name} has no help"
        assert parameter.kind in (bool, int, float, str)
        if parameter.default is not None:
            assert params.check(name, parameter, parameter.default) == parameter.default
            assert params.check(name, parameter, str(parameter.default)) == parameter.default


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("limit", "4", 4.0),
        ("limit", "0.5", 0.5),
        ("limit", 10, 10.0),
        ("number", "7", 7),
        ("number", "3.0", 3),
        ("number", "None", None),
        ("number", "none", None),
        ("number", None, None),
        ("number", "", None),
        ("mode", "fix", "fix"),
        ("flag", "False", False),
        ("flag", "true", True),
        ("flag", 0, False),
        ("flag", "no", False),
        ("names", "", ""),
        ("names", "a,b", "a,b"),
        ("file", "None", None),
        ("file", "x.fits", "x.fits"),
    ],
)
def test_values_become_the_parameters_type(name: str, text: object, value: object) -> None:
    found = params.check("example", params.parameters(example)[name], text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("limit", "0.4", "example:limit: '0.4' came; expected a number from 0.5 up to 10"),
        ("limit", 11, "11 came"),
        ("limit", "nan", "expected a number"),
        ("limit", "wide", "expected a number"),
        ("limit", None, "None came"),
        ("limit", True, "expected a number"),
        ("number", "0", "a whole number from 1 or None"),
        ("number", "2.5", "whole"),
        ("number", "1e400", "whole"),
        ("mode", "fixed", "one of exit, fix, new; did you mean fix?"),
        ("flag", "maybe", "True or False"),
        ("flag", None, "None came"),
    ],
)
def test_wrong_values_are_refused_in_words(name: str, text: object, words: str) -> None:
    with pytest.raises(GdaskError) as error:
        params.check("example", params.parameters(example)[name], text)
    assert words in str(error.value)


def test_layers_go_from_low_to_high_and_say_where_a_value_came_from() -> None:
    layers = [
        ("instrument", {"limit": 4.0, "mode": "fix"}),
        ("config", {"limit": 5.0, "number": 2}),
        ("user", {"example:limit": "6", "limit": "7", "flag": "no"}),
    ]
    settings = params.resolve(example, layers, {"number": 9})
    assert settings["limit"] == (6.0, "user") and settings["flag"] == (False, "user")
    assert settings["mode"] == ("fix", "instrument") and settings["number"] == (9, "recipe")
    assert settings["names"] == ("", "default") and settings["skip_primitive"] == (False, "default")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("skyCorrect", "sky_correct"),
        ("ADUToElectrons", "adu_to_electrons"),
        ("addDQ", "add_dq"),
        ("addVAR", "add_var"),
        ("adjustWCSToReference", "adjust_wcs_to_reference"),
        ("makeBPM", "make_bpm"),
        ("checkWCS", "check_wcs"),
        ("nonlinearityCorrect", "nonlinearity_correct"),
        ("resampleToCommonFrame", "resample_to_common_frame"),
        ("makeProcessedBPM", "make_processed_bpm"),
        ("sky_correct", "sky_correct"),
        ("detectSources", "detect_sources"),
    ],
)
def test_names_of_the_field_are_ours(theirs: str, ours: str) -> None:
    assert params.snake_case(theirs) == ours


def test_every_step_names_its_dragons_name() -> None:
    """The name in brackets in a step's docstring leads to the step, so that users find it."""
    import re

    for name in steps.__all__:
        named = re.findall(r"\[([\w, ]+)\]", getattr(steps, name).__doc__)
        theirs = [params.snake_case(part.strip()) for text in named for part in text.split(",")]
        assert not theirs or name in theirs


@pytest.mark.parametrize("name", steps.__all__)
def test_every_parameter_refuses_another_type_and_what_is_out_of_range(name: str) -> None:
    """As typed after -p, for every parameter of every step; what has no wrong value is text."""
    step = getattr(steps, name)
    for key, parameter in params.parameters(step).items():
        wrong = {
            bool: ["maybe", "2"],
            int: ["many", "1.5", "nan"],
            float: ["wide", "nan"],
            str: [],
        }[parameter.kind]
        wrong += ["no such choice"] if parameter.choices else []
        low, high = parameter.limits
        wrong += [str(low - 1)] if low is not None else []
        wrong += [str(high + 1)] if high is not None else []
        assert wrong or parameter.kind is str
        for value in wrong:
            for spelled in (f"{name}:{key}", key):
                with pytest.raises(UsageError, match=f"{name}:{key}: .* came; expected "):
                    params.check_user({spelled: value}, {name: step})


def test_unknown_names_are_refused_with_the_closest_one() -> None:
    params.check_user({"example:limit": "2", "flag": "no", "sky_correct:offset_sky": False}, STEPS)
    for key, value, words in (
        (
            "skycorect:offset_sky",
            "no",
            "no step 'skycorect' in this recipe; did you mean sky_correct?",
        ),
        ("example:limmit", "2", "no parameter 'limmit' in example; did you mean limit?"),
        ("ofset_sky", "2", "no parameter 'ofset_sky'; did you mean offset_sky?"),
        ("example:limit", "99", "expected a number from 0.5 up to 10"),
        ("limit", "99", "expected a number"),
    ):
        with pytest.raises(GdaskError) as error:
            params.check_user({key: value}, STEPS)
        assert words in str(error.value), key


def test_pairs_of_the_command_line() -> None:
    pairs = params.parse_pairs(
        ["skyCorrect:offset_sky=False", "prepare:bad_wcs=fix", 'names="a b"', "x=a=b"]
    )
    assert pairs == {
        "sky_correct:offset_sky": "False",
        "prepare:bad_wcs": "fix",
        "names": "a b",
        "x": "a=b",
    }
    for wrong in ("offset_sky", "=3", " =3", ""):
        with pytest.raises(GdaskError, match="expected parameter=value"):
            params.parse_pairs([wrong])
    assert params.normalise([("skyCorrect:offset_sky", False), ("a", 1)]) == {
        "sky_correct:offset_sky": False,
        "a": 1,
    }


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_pair_is_read_or_refused_in_words(pairs: list[str]) -> None:
    try:
        found = params.parse_pairs(pairs)
    except GdaskError:
        assert any(
            not pair.partition("=")[1] or not pair.partition("=")[0].strip() for pair in pairs
        )
        return
    assert len(found) <= len(pairs) and all(
        key and isinstance(value, str) for key, value in found.items()
    )
    try:
        params.check_user(found, STEPS)
    except GdaskError as error:
        assert str(error)


@given(
    st.one_of(st.text(max_size=20), st.floats(), st.integers(), st.booleans(), st.none()),
    st.sampled_from(["limit", "number", "mode", "flag"]),
)
def test_any_value_is_in_range_or_refused(value: object, name: str) -> None:
    parameter = params.parameters(example)[name]
    try:
        found = params.check("example", parameter, value)
    except GdaskError as error:
        assert f"example:{name}" in str(error)
        return
    assert found is None or type(found) is parameter.kind
    if name == "limit":
        assert 0.5 <= found <= 10


def test_config_files(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('limit = 2.5\n[skyCorrect]\noffset_sky = false\noperation = "mean"\n')
    assert params.read_config(str(config)) == {
        "limit": 2.5,
        "sky_correct:offset_sky": False,
        "sky_correct:operation": "mean",
    }
    config.write_text("limit = = 3")
    for path in (config, tmp_path / "none.toml"):
        with pytest.raises(GdaskError, match=str(path)):
            params.read_config(str(path))


def unreadable(*args: object, **kwargs: object) -> object:
    raise AssertionError("pixels were read")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "skyCorect:offset_sky=False"], "did you mean sky_correct?"),
        (["-p", "offset_ski=False"], "offset_sky"),
        (["-p", "sky_correct:offset_sky=2"], "True or False"),
        (["-r", "reduc"], "did you mean reduce?"),
        (["-r", "nothing.py:mine"], "no file nothing.py"),
        (["-p", "offset_sky"], "expected parameter=value"),
        (["--user_cal", "procesed_flat:x.fits"], "did you mean processed_flat?"),
        (["--user_cal", "x.fits"], "KIND:FILE"),
        (["-c", "none.toml"], "none.toml"),
        (["--cluster", "threds"], "threds"),
        (["gone.fits"], "gone.fits: no such file"),
        (["--user_cal", "processed_flat:gone.fits"], "gone.fits: no such file"),
        (["--suffix", "a/b"], "not a path"),
    ],
)
def test_mistakes_end_before_pixels_are_read(
    workspace: Path,
    night: object,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("gdask.io.stored.read_window", unreadable)
    assert reduce.main([*night.science[:2], *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(workspace.glob("*.fits"))


def test_a_raw_frame_is_no_user_calibration(
    workspace: Path, night: object, capsys: pytest.CaptureFixture
) -> None:
    raw = night.flat_on[0]
    assert reduce.main([night.science[0], "--user_cal", f"processed_flat:{raw}"]) == 2
    assert f"{raw}: not a processed_flat" in capsys.readouterr().err


def test_showpars_prints_what_a_step_takes(night: object, capsys: pytest.CaptureFixture) -> None:
    assert showpars.main([night.science[0], "associateSky"]) == 0
    lines = capsys.readouterr().out
    assert (
        "associate_sky: Name the sky frames" in lines
        and "distance           1.0" in lines
        and "(GSAOI)" in lines
    )
    assert showpars.main([night.science[0]]) == 0
    assert "stack_frames" in capsys.readouterr().out
    assert showpars.main([night.science[0], "skyCorect"]) == 2
    assert "did you mean sky_correct" in capsys.readouterr().err


def test_showrecipes_prints_names_and_source(night: object, capsys: pytest.CaptureFixture) -> None:
    assert showrecipes.main([night.science[0]]) == 0
    text = capsys.readouterr().out
    assert all(
        f"    {name} " in text
        for name in ("default", "reduce", "reduce_nostack", "align_and_stack", "check_wcs")
    )
    assert showrecipes.main([night.flat_on[0], "-r", "makeProcessedFlat"]) == 0
    text = capsys.readouterr().out
    assert (
        "def make_processed_flat(run, frames):" in text
        and "steps: " in text
        and "threshold_flatfield" in text
    )
