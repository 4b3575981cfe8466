"""Gates: limits, fellows, tables of the user's, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdask.headers.numbers import NUMBERS, known_numbers, number_cards, read_numbers
from gdask.model import UsageError
from gdask.reduction import gates

GOOD = {
    "kind": "image",
    "noise_ratio": 1.0,
    "fwhm": 0.1,
    "astrometric_rms": 2.0,
    "ellipticity": 0.1,
}


def states(numbers: dict, **options: object) -> dict[str, str]:
    return {verdict.number: verdict.state for verdict in gates.judge(numbers, **options)}


@pytest.mark.parametrize(
    ("value", "state"),
    [(1.0, "passed"), (1.6, "warning"), (5.0, "failure"), (0.6, "warning"), (0.1, "failure")],
)
def test_limits_of_both_sides(value: float, state: str) -> None:
    (verdict,) = [
        v for v in gates.judge(GOOD | {"noise_ratio": value}) if v.number == "noise_ratio"
    ]
    assert verdict.state == state and verdict.value == value and verdict.is_met == (value == 1.0)
    assert f"{value:.3g} times what VAR says" in verdict.sentence


def test_numbers_that_are_not_there_and_other_kinds_are_not_judged() -> None:
    assert states({"kind": "image"}) == {} and gates.summary(()) is None
    assert "mean_counts" not in states({"kind": "image", "mean_counts": 1.0})
    assert states({"kind": "flat", "mean_counts": 1.0}) == {"mean_counts": "failure"}
    assert states({"kind": "image", "noise_ratio": float("nan")}) == {}
    assert states({"weight": 0.005}, kind="input") == {"weight": "failure"}


def test_a_number_over_another_one() -> None:
    found = {v.number: v for v in gates.judge(GOOD | {"astrometric_rms": 15.0})}
    assert found["astrometric_rms"].value == pytest.approx(150)  # mas of an arcsec
    assert found["astrometric_rms"].state == "warning"
    assert states(GOOD)["astrometric_rms"] == "passed"


def test_fellows_count_from_five_on() -> None:
    fellows = [{"fwhm": 0.1 + 0.001 * k} for k in (-1, 1, 0, 2, -2)]
    wide = {"kind": "image", "fwhm": 0.2}
    assert states(wide, fellows=fellows[:4]) == {"fwhm": "passed"}
    (verdict,) = gates.judge(wide, fellows=fellows)
    assert (verdict.state, verdict.basis) == ("failure", "fellows")
    assert verdict.limit == pytest.approx(0.1 + 10 * 0.03 * 0.1)  # least_spread of the median
    assert "its fellows' limit" in gates.sentence(verdict)
    assert states({"kind": "image", "fwhm": 0.104}, fellows=fellows) == {"fwhm": "passed"}
    assert states({"kind": "image", "fwhm": 0.02}, fellows=fellows) == {"fwhm": "passed"}  # better


def test_the_card_and_the_worst() -> None:
    verdicts = gates.judge(GOOD)
    assert gates.summary(verdicts) == gates.worst(verdicts) == "passed"
    verdicts = gates.judge(GOOD | {"noise_ratio": 9.0, "ellipticity": 0.4})
    assert gates.summary(verdicts) == "ellipticity (warning), noise_ratio (failure)"
    assert gates.worst(verdicts) == "failure" and gates.worst(()) == ""


def test_a_file_of_the_users_changes_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[noise_ratio]\nwarning_above = 3.0\n[ellipticity]\noff = true\n"
        "[weight]\nfailure_below = 0.05\n[zero_point]\nwarning_below = 26\nof = ['image']\n"
    )
    own = gates.read_own(path)
    table = gates.merged(own)
    assert table["noise_ratio"]["failure_above"] == gates.shipped()["noise_ratio"]["failure_above"]
    numbers = GOOD | {"noise_ratio": 2.0, "ellipticity": 0.9, "zero_point": 25.0}
    found = states(numbers, table=table)
    assert found["noise_ratio"] == "passed" and "ellipticity" not in found
    assert found["zero_point"] == "warning"
    assert gates.layer_of(own) == [("gates", {"scale_counts_to_reference:min_weight": 0.05})]
    assert gates.layer_of({}) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[noise_ration]\nwarning_above = 1", "noise_ratio"),
        ("[noise_ratio]\nwarning_abov = 1", "warning_above"),
        ("[noise_ratio]\nwarning_above = 'much'", "expected int or float"),
        ("[noise_ratio]\naction = 'shout'", "expected one of note, leave out, block"),
        ("[noise_ratio]\nof = ['images']", "expected one of image"),
        ("noise_ratio = 3", "a table [noise_ratio]"),
        ("noise_ratio = [", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_what_was_expected(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        gates.merged(gates.read_own(path))
    assert said in str(caught.value) and "mine.toml" in str(caught.value)
    with pytest.raises(UsageError, match=r"none\.toml"):
        gates.read_own(tmp_path / "none.toml")


def test_every_shipped_gate_has_limits_a_sentence_and_an_action() -> None:
    for name, gate in gates.shipped().items():
        assert gate["sentence"] and gate["action"] in gates.ACTIONS, name
        assert any("_" in key and key.split("_")[0] in gates.STATES for key in gate), name


# Cards -----------------------------------------------------------------------------------------


def test_cards_are_read_as_they_were_written() -> None:
    values = {"fwhm": 0.0912345678, "frames": 9, "zero_point_source": "nominal", "noise_ratio": 1.0}
    cards = number_cards(values | {"sky_level": float("nan")})
    header = {key: card[0] for key, card in cards.items() if card is not None}
    assert header["MEANFWHM"] == 0.091235 and "SKYLEVEL" not in header
    assert cards["SKYLEVEL"] is None  # one of an input would be removed
    assert set(cards) == {number.keyword for number in NUMBERS}
    assert read_numbers(header | {"PROCSCI": "now"}) == known_numbers(values, "image")


def test_keywords_are_fit_for_fits_and_said_once() -> None:
    keywords = [number.keyword for number in NUMBERS]
    assert len(set(keywords)) == len(keywords) == len({number.name for number in NUMBERS})
    assert all(len(keyword) <= 8 and keyword.isupper() for keyword in keywords)
    assert all(len(number.comment) <= 46 for number in NUMBERS)  # in a card of 80 characters


def test_the_document_names_every_keyword() -> None:
    text = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text()
    missing = [
        n.keyword for n in NUMBERS if f"`{n.keyword}`" not in text or f"`{n.name}`" not in text
    ]
    assert missing == []
