"""Numbers from headers pass one gate: keyword, value and range are named, nothing overflows."""

from __future__ import annotations

from pathlib import Path

import pytest
from astropy.io import fits
from gdask.recipes import gsaoi_image

import gdask
from gdask import steps
from gdask.instruments import view
from gdask.instruments.view import RANGES, REQUIRED, number_in_range, problem_with
from gdask.model import GdaskError
from gdask.reduction.screening import open_all, screen

#: Cards, as they are in a file, that a frame cannot have.
CARDS = {
    "EXPTIME": ["1E308", "1E13", f"{10**60}", "-1.0", "'sixty'", "(1.0, 2.0)", "T", "NaN"],
    "COADDS": ["0", "-3", "1E10", "'x'"],
    "LNRS": ["0", "1E10", "'many'"],
    "NFOWLER": ["1E10"],
    "PA": ["'abc'", "(1.0, 2.0)", "1E300", "361.0"],
    "POFFSET": ["'abc'", "(1.0, 2.0)", "1E300"],
    "QOFFSET": ["'12 arcsec'", "(1.0, 2.0)"],
    "RATRGOFF": ["'abc'", "(1.0, 2.0)", "1E308"],
    "DECTRGOF": ["'abc'", "(1.0, 2.0)", "-1E308"],
    "CRVAL1": ["1" * 61, "'abc'", "1E308"],
    "CRVAL2": ["91.0", "(1.0, 2.0)"],
    "CD1_1": ["1E300", "'x'"],
}
MUTATIONS = [(keyword, value) for keyword, values in CARDS.items() for value in values]


def mutated(path: str, folder: Path, keyword: str, value: str) -> str:
    """Copy a raw file, with a card of the primary header or of each array as in a bad file."""
    content = Path(path).read_bytes()
    target = folder / "S20170505S0900.fits"
    card = f"{keyword:8}= {value}"[:80].ljust(80).encode()
    name = f"{keyword:8}=".encode()
    if name in content:
        while name in content:
            place = content.index(name)
            content = content[:place] + b"\0" + card[1:] + content[place + 80 :]
        content = content.replace(b"\0" + card[1:], card)
    else:
        place = content.index(b"UT      =")
        content = content[:place] + card + content[place + 80 :]
    target.write_bytes(content)
    return str(target)


@pytest.mark.parametrize(("keyword", "value"), MUTATIONS)
def test_a_wrong_number_sets_its_frame_aside_with_keyword_value_and_range(
    night: object, tmp_path: Path, keyword: str, value: str
) -> None:
    path = mutated(night.science[1], tmp_path, keyword, value)
    opened = open_all([night.science[0], path])
    left = list(opened.set_aside)
    if len(opened.frames) > 1:
        left += screen(opened.frames, gsaoi_image.reduce, gsaoi_image).set_aside
    (only,) = left
    assert only.name == Path(path).name
    low, high = RANGES[keyword]
    assert f"{keyword} = " in only.reason and f"from {low:g} to {high:g}" in only.reason
    assert len(only.reason) < 200


@pytest.mark.parametrize(("keyword", "value"), MUTATIONS)
def test_no_step_or_descriptor_overflows(
    night: object, tmp_path: Path, keyword: str, value: str
) -> None:
    frame = gdask.open(mutated(night.science[1], tmp_path, keyword, value))
    for name in view(frame)._descriptors:
        view(frame)(name)
    try:
        steps.separate_sky(steps.prepare((frame,), bad_wcs="fix"))
    except GdaskError as error:
        assert "\n" not in str(error) or keyword in str(error)


@pytest.mark.parametrize("keyword", sorted(RANGES))
def test_the_ends_of_each_range_pass(keyword: str) -> None:
    low, high = RANGES[keyword]
    for value in (low, high, str(low)):
        assert number_in_range(keyword, value) == float(value)
        assert problem_with(keyword, value) == ""
    step = 1e-6 * max(abs(low), abs(high))
    for value in (low - step, high + step, 10**400, True, complex(1, 1), "x"):
        assert number_in_range(keyword, value) is None
        assert keyword in problem_with(keyword, value)
    assert problem_with(keyword, None) == problem_with(keyword, "  ") == ""


def test_real_values_pass(night: object) -> None:
    assert number_in_range("PA", -9999.0) == -9999.0 and "PA" in REQUIRED
    for path in (*night.sequence, *night.flat_on, *night.dark, *night.std):
        header = fits.getheader(path)
        for keyword in REQUIRED.intersection(header):
            assert problem_with(keyword, header[keyword]) == "", (path, keyword)


@pytest.mark.parametrize(
    ("keyword", "value"), [("BSCALE", 0.0), ("BSCALE", 1e300), ("BSCALE", "x"), ("BZERO", 1e300)]
)
def test_a_wrong_scaling_is_an_error_at_once(
    night: object, tmp_path: Path, keyword: str, value: object
) -> None:
    path = tmp_path / "S1.fits"
    with fits.open(night.science[0], do_not_scale_image_data=True) as hdus:
        hdus[2].header["AAAA"] = value
        hdus.writeto(path)
    path.write_bytes(path.read_bytes().replace(b"AAAA    =", f"{keyword:8}=".encode()))
    with pytest.raises(GdaskError, match=f"{keyword} = .*damaged"):
        gdask.open(path)


def test_a_deeply_nested_account_is_damaged(tmp_path: Path) -> None:
    from astropy.table import Table

    from gdask.reduction.replay import account_of

    rows = Table({"item": ["versions"], "value": ["[" * 20_000]})
    units = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(rows, name="REDUCTION")])
    units.writeto(tmp_path / "p.fits")
    with pytest.raises(GdaskError, match="REDUCTION is damaged"):
        account_of(tmp_path / "p.fits")
