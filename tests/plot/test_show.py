"""`gdask show`: what it writes, what it says of wrong inputs, what terminals are sent."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from conftest import Night
from PIL import Image
from products import noisy, sky_header, write_product

from gdask.cli import main
from gdask.cli import show as command
from gdask.plot.show import CATALOG_COLOUR, OWN_COLOUR, Look, draw
from gdask.plot.terminal import escape, protocol, sixel_text


def test_a_picture_beside_the_file(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "S1.fits"
    path.symlink_to(night.science[0])
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'S1.png'}\n"
    with Image.open(tmp_path / "S1.png") as picture:
        assert max(picture.size) > 320
        turned = picture.size
    assert (
        main(["show", str(path), "--as-read", "--size", "300", "-o", str(tmp_path / "r.png")]) == 0
    )
    with Image.open(tmp_path / "r.png") as picture:
        assert max(picture.size) <= 320 and picture.size != turned


def test_several_files_go_into_a_folder(image: Path, flat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["show", str(image), str(flat), str(image), "-o", str(out), "--size", "200"]) == 0
    stems = [image.stem, flat.stem, f"{image.stem}_2"]
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{stem}.png" for stem in stems)


def test_rings_are_where_the_sources_are(tmp_path: Path) -> None:
    shape = (200, 300)
    header = sky_header(shape, turn=30, scale=0.2)
    path = write_product(tmp_path / "p.fits", noisy(shape), header=header)
    ra, dec = WCS(header).all_pix2world([50.0, 400.0], [120.0, 120.0], 0)
    far = Table({"RA": [*ra, 10.0], "Dec": [*dec, 80.0]})  # one on the image, two beside it
    far.write(tmp_path / "c.ecsv")
    picture = np.asarray(draw(path, Look(catalog=str(tmp_path / "c.ecsv"))).convert("RGB"))
    rows, columns = np.nonzero((picture == CATALOG_COLOUR).all(axis=2))
    assert (columns.min() + columns.max()) / 2 == pytest.approx(50, abs=0.6)
    assert 199 - (rows.min() + rows.max()) / 2 == pytest.approx(120, abs=0.6)


def test_rings_of_the_own_catalogue(image: Path) -> None:
    picture = np.asarray(draw(image, Look(objects=True)).convert("RGB"))
    assert (picture == OWN_COLOUR).all(axis=2).any()


def test_files_blink(night: Night, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("b.gif", "b.png"):
        out = tmp_path / name
        words = [
            *night.science[:3],
            "--blink",
            "--size",
            "200",
            "--seconds",
            "0.25",
            "-o",
            str(out),
        ]
        assert main(["show", *words]) == 0
        with Image.open(out) as moving:
            assert moving.n_frames == 3 and moving.info["duration"] == 250  # type: ignore
            first = np.asarray(moving.convert("RGB")).astype(int)
            moving.seek(1)
            assert (first != np.asarray(moving.convert("RGB"))).any()
    assert capsys.readouterr().out.split() == [str(tmp_path / "b.gif"), str(tmp_path / "b.png")]


def _spectrum(path: Path) -> None:
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "INSTRUME": "F2",
            "GRISM": "JH_G5801",
            "MASKTYPE": -1,
            "MASKNAME": "2pix-slit",
            "DECKER": "Long_slit",
            "GRISMPOS": "JH",
            "OBSTYPE": "OBJECT",
            "MOSPOS": "2pix-slit",
        }
    )
    fits.HDUList([primary, fits.ImageHDU(np.ones((9, 9), "f4"))]).writeto(path)


def _wrong_inputs(folder: Path) -> dict[str, tuple[list[str], int, str]]:
    """Give words, exit code and a pattern of the message of things that cannot be shown."""
    write_product(folder / "p.fits", noisy((20, 20)), header=sky_header((20, 20)))
    write_product(folder / "bare.fits", noisy((20, 20)))
    (folder / "text.fits").write_text("not FITS at all")
    (folder / "empty.list").write_text("# nothing\n")
    fits.PrimaryHDU().writeto(folder / "header.fits")
    Table({"NAME": ["a"], "MAG": [1.0]}).write(folder / "c.csv", format="ascii.csv")
    Table({"RA": [150.0], "DEC": [-35.0]}).write(folder / "good.csv", format="ascii.csv")
    _spectrum(folder / "spectrum.fits")
    return {
        "no file": (["absent.fits"], 2, "absent.fits: no such file"),
        "nothing": ([], 2, "required: FILE"),
        "an empty list": (["@empty.list"], 2, "no file to show"),
        "not FITS": (["text.fits"], 1, "text.fits: "),
        "a header": (["header.fits"], 1, "no image extension"),
        "a spectrum": (["spectrum.fits"], 1, "spectrum.fits: a spectrum; gdask shows images"),
        "no DQ": (["p.fits", "--dq"], 1, "has no DQ"),
        "no OBJCAT": (["p.fits", "--objects"], 1, "has no catalogue"),
        "no columns": (
            ["p.fits", "--catalog", "c.csv"],
            1,
            "no column for RAJ2000; it has NAME, MAG",
        ),
        "no catalogue": (["p.fits", "--catalog", "d.csv"], 2, "--catalog d.csv: no such file"),
        "no sky": (["bare.fits", "--catalog", "good.csv"], 1, "no WCS of the sky"),
        "blink of one": (["p.fits", "--blink"], 2, "two files or more"),
        "blink as FITS": (["p.fits", "p.fits", "--blink", "-o", "b.fits"], 2, "NAME.gif"),
        "many in one": (["p.fits", "p.fits", "-o", "a.png"], 2, "name a folder"),
        "not PNG": (["p.fits", "-o", "a.jpg"], 2, "NAME.png or a folder"),
        "no folder": (["p.fits", "-o", "x/a.png"], 2, "no folder x"),
        "tiny": (["p.fits", "--size", "3"], 2, "--size 3"),
        "fast": (["p.fits", "--seconds", "0"], 2, "--seconds 0"),
    }


WRONG = (
    "no file",
    "nothing",
    "an empty list",
    "not FITS",
    "a header",
    "a spectrum",
    "no DQ",
    "no OBJCAT",
    "no columns",
    "no catalogue",
    "no sky",
    "blink of one",
    "blink as FITS",
    "many in one",
    "not PNG",
    "no folder",
    "tiny",
    "fast",
)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_told_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words, code, message = _wrong_inputs(tmp_path)[name]
    before = sorted(tmp_path.iterdir())
    assert main(["show", *words]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(re.escape(message), lines[-1]), lines
    assert len(lines) == 1 or lines[0].startswith("usage")
    assert sorted(tmp_path.iterdir()) == before


def test_what_can_be_shown_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = write_product(tmp_path / "p.fits", noisy((20, 20)))
    (tmp_path / "text.fits").write_text("not FITS at all")
    assert main(["show", str(tmp_path / "text.fits"), str(good)]) == 1
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'p.png'}\n" and "text.fits" in told.err


# Terminals -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/1"}, ""),
        ({"TERM": "xterm-256color"}, ""),
        ({}, ""),
    ],
)
def test_terminals_are_known_by_their_environment(environment: dict, expected: str) -> None:
    assert protocol(environment, Terminal()) == expected
    assert protocol(environment, io.StringIO()) == ""


def test_kitty_and_iterm_are_sent_the_png() -> None:
    picture = Image.fromarray(noisy((80, 90)).astype("u1"))
    for name, pattern in (
        ("kitty", r"\x1b_G[^;]*;([^\x1b]*)\x1b\\"),
        ("iterm2", r":([^\x07]*)\x07"),
    ):
        text = escape(picture, name)
        parts = re.findall(pattern, text)
        with Image.open(io.BytesIO(base64.b64decode("".join(parts)))) as received:
            assert np.array_equal(np.asarray(received), np.asarray(picture))
        assert name != "kitty" or (len(parts) > 1 and max(map(len, parts)) <= 4096)


def test_sixels_are_the_pixels() -> None:
    pixels = np.zeros((15, 40, 3), "u1")
    pixels[:, 10:] = (255, 0, 0)
    pixels[7, 33] = (0, 0, 255)
    assert np.array_equal(_decoded(sixel_text(Image.fromarray(pixels))), pixels)


def _decoded(text: str) -> np.ndarray:
    """Decode sixel text, as a terminal does."""
    body = text.removeprefix("\x1bP").removesuffix("\x1b\\")
    size = re.match(r'q"1;1;(\d+);(\d+)', body)
    assert size
    width, height = int(size[1]), int(size[2])
    palette = {
        int(c): [round(255 * int(v) / 100) for v in (r, g, b)]
        for c, r, g, b in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", body)
    }
    image = np.zeros((height, width, 3), "u1")
    rest = re.sub(r"#\d+;2;\d+;\d+;\d+", "", body[size.end() :])
    x = top = colour = 0
    for token in re.findall(r"#\d+|![0-9]+[?-~]|[?-~]|\$|-", rest):
        if token[0] == "#":
            colour = int(token[1:])
        elif token in "$-":
            x, top = 0, top + 6 * (token == "-")
        else:
            count, bits = int(token[1:-1] or 1) if token[0] == "!" else 1, ord(token[-1]) - 63
            for bit in range(6):
                if bits >> bit & 1:
                    image[top + bit, x : x + count] = palette[colour]
            x += count
    return image


def test_a_terminal_that_shows_pictures_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_product(tmp_path / "p.fits", noisy((40, 40)))
    for name in ("TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-kitty")
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    assert command.main([str(path)]) == 0
    assert "\x1b_Ga=T,f=100," in screen.getvalue() and not (tmp_path / "p.png").exists()


def test_reduce_writes_previews(
    calibrated: Path, night: Night, capsys: pytest.CaptureFixture
) -> None:
    assert main(["reduce", "-q", "--preview", *night.dark]) == 0
    (product,) = Path().glob("*_dark.fits")
    with Image.open(product.with_suffix(".png")) as picture:
        assert min(picture.size) > 300
    assert f"{product.stem}.png" in capsys.readouterr().out
