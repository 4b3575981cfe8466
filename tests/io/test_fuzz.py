"""Random content of files, lists and options gives a value or a GdaskError, never a traceback.

Time and memory are bounded, too. By default a few hundred inputs are tried, always the same;
`make test-slow` tries many thousands, others each time.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gdask import params
from gdask.caldb import Database, associate, database_at, open_databases
from gdask.caldb.database import rows
from gdask.campaign.settings import read_flags, read_settings
from gdask.cli import main
from gdask.cli.lists import expand_files
from gdask.dataselect.selection import Values, parse_expression
from gdask.headers import read_headers, repair_card
from gdask.instruments import DESCRIPTORS, view
from gdask.io.read import open_frame
from gdask.kernels.geometry.projection import tangent_plane, tangent_sky
from gdask.model import GdaskError
from gdask.reduction.recipe_library import known_steps
from gdask.reduction.verify import verify

MAX_SECONDS_OF_ONE_INPUT = 10
MAX_BYTES_OF_ALL_INPUTS = 400 << 20
#: Inputs tried so far, by what they are.
TRIED: dict[str, int] = {}

few_or_many = pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.slow)])


def fuzz(
    count: int, name: str, strategy: st.SearchStrategy, attempt: Callable[[object], object]
) -> None:
    """Try `count` inputs.

    An error that is no GdaskError fails the test, as do 10 s for one input and 400 MB for all.
    """

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=count < 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategy)
    def one(value: object) -> None:
        TRIED[name] = TRIED.get(name, 0) + 1
        with bounded(), contextlib.suppress(GdaskError):
            attempt(value)

    before = peak_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one()
    assert peak_memory() - before < MAX_BYTES_OF_ALL_INPUTS


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"no answer within {MAX_SECONDS_OF_ONE_INPUT} s of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS_OF_ONE_INPUT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module", autouse=True)
def _account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("warm") / "S1.fits"
    path.write_bytes(mef([], "GSAOI"))
    read_before_computing(path)  # imports and compiles what is measured below
    for kernel in (tangent_plane, tangent_sky):
        kernel(10.0, 20.0, 10.1, 20.1)
    yield
    counts = ", ".join(f"{name} {number}" for name, number in TRIED.items())
    print(f"\nfuzz: {sum(TRIED.values())} inputs: {counts}")


# Headers ---------------------------------------------------------------------------------------

PHU = {
    "INSTRUME": "GSAOI",
    "OBSERVAT": "Gemini-South",
    "OBJECT": "NGC",
    "OBSTYPE": "OBJECT",
    "OBSCLASS": "science",
    "RA": 201.3,
    "DEC": -43.0,
    "PA": 0.0,
    "FILTER1": "Kshort_G1105",
    "FILTER2": "Clear",
    "DATE-OBS": "2017-05-05",
    "UT": "02:24:00.0",
    "LNRS": 8,
    "COADDS": 1,
    "EXPTIME": 60.0,
    "FRAME": "FK5",
    "RATRACK": 0.0,
    "DECTRACK": 0.0,
    "GCALLAMP": "IRhigh",
    "GCALSHUT": "OPEN",
    "AIRMASS": 1.2,
    "WAVELENG": 21500.0,
    "POFFSET": 1.0,
    "RAOFFSET": 0.0,
    "PMRA": 0.1,
    "EPOCH": 2000.0,
    "INPORT": 1,
    "BUNIT": "ADU",
    "LYOT": "f/16",
    "GRISM": "Open",
    "MASKNAME": "3pix-slit",
    "MOSPOS": "Open",
    "RAWIQ": "Any",
    "PREPARE": "t",
    "GWFS1CFG": "x",
    "LT": "23:00:00",
    "PIXSCALE": 0.18,
    "FOCUS": "f/16",
}
EXT = {
    "EXTNAME": "SCI",
    "EXTVER": 1,
    "ARRAYID": "H2RG-032-074",
    "CCDSEC": "[1:8,1:6]",
    "DETSEC": "[1:8,1:6]",
    "DATASEC": "[1:8,1:6]",
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 201.3,
    "CRVAL2": -43.0,
    "CRPIX1": 1.0,
    "CRPIX2": 2.0,
    "CD1_1": 5e-6,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": 5e-6,
    "GAIN": 2.4,
    "BUNIT": "ADU",
    "BZERO": 0.0,
    "BSCALE": 1.0,
    "XTENSION": "IMAGE",
    "NAXIS1": 8,
    "NAXIS2": 6,
    "NAXIS": 2,
    "BITPIX": -32,
    "PCOUNT": 0,
}

odd = st.sampled_from(
    [
        "",
        "  ",
        "INDEF",
        "NaN",
        "1E400",
        "-0.",
        "-9999",
        "T",
        "'",
        "''",
        "0",
        "1e-320",
        "[0:0,0:0]",
        "[9:1,4:2]",
        "99:99:99",
        "2017-02-30",
        "(1,2)",
        "f/",
        "_G",
        "&",
        "pix-slit",
        "999999999999999999999",
        "'O''Hara",
        "2017-05-05T25:00:00",
    ]
)
plain = st.one_of(
    odd,
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(str),
    st.booleans().map(lambda b: "T" if b else "F"),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=70),
)
value = st.one_of(plain, plain.map(lambda text: f"'{text}'"))
changes = st.lists(
    st.tuples(
        st.sampled_from([*PHU, *EXT]), st.sampled_from(["set", "drop", "twice", "raw"]), value
    ),
    max_size=8,
)


def mef(edits: list[tuple[str, str, str]], instrument: str) -> bytes:
    """Give the bytes of a file of 4 arrays of 8 x 6 pixels with edited cards."""
    units = [
        {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "0", "EXTEND": "T"}
        | {k: card_value(v) for k, v in PHU.items()}
        | {"INSTRUME": f"'{instrument}'"}
    ]
    units += [
        {"XTENSION": "'IMAGE   '"}
        | {k: card_value(v) for k, v in EXT.items() if k != "XTENSION"}
        | {"GCOUNT": "1"}
    ] * 4
    parts = []
    for number, unit in enumerate(units):
        cards = [f"{key:<8}= {text:>20}" for key, text in unit.items()]
        for key, how, text in edits if number < 2 else ():
            at = next((n for n, card in enumerate(cards) if card.startswith(f"{key:<8}=")), None)
            if at is not None and how in ("drop", "set", "raw"):
                del cards[at]
            if how != "drop" and (at is not None or number == 0):
                cards.insert(
                    len(cards) if at is None else at,
                    f"{key:<8}{'' if how == 'raw' else '= '}{text}",
                )
        text = "".join(card[:80].ljust(80) for card in [*cards, "END"])
        parts.append(text.ljust(-(-len(text) // 2880) * 2880).encode("ascii"))
        parts.append(np.arange(48, dtype=">f4").tobytes().ljust(2880, b"\0") if number else b"")
    return b"".join(parts)


def card_value(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else "T" if value is True else str(value)


def read_before_computing(path: Path) -> None:
    """Do what commands do with a file before they compute.

    They find tags, descriptors and layout; `verify` does the rest.
    """
    report = verify(path)
    assert all("\n" not in str(fault) for fault in report.faults), report.faults
    seen = view(read_headers(path))
    _ = seen.tags
    for name in DESCRIPTORS:
        seen(name)
    associate(path, "processed_flat", ())
    open_frame(path)


@few_or_many
def test_headers(count: int, tmp_path: Path) -> None:
    path = tmp_path / "S1.fits"

    def attempt(case: tuple[list[tuple[str, str, str]], str]) -> None:
        path.write_bytes(mef(*case))
        read_before_computing(path)

    fuzz(
        count,
        "headers",
        st.tuples(changes, st.sampled_from(["GSAOI", "F2", "gsaoi ", "Flam"])),
        attempt,
    )


@pytest.mark.parametrize(
    ("instrument", "keyword", "text"),
    [
        ("GSAOI", "CD1_1", "9" * 21),
        ("F2", "GAIN", "1e-320"),
        ("GSAOI", "GAIN", "-1"),
        ("F2", "GAIN", "-1"),
        ("F2", "LNRS", "0"),
        ("GSAOI", "NAXIS1", "8.0"),
        ("GSAOI", "NAXIS", "'2'"),
        ("GSAOI", "BZERO", ":"),
        ("GSAOI", "BITPIX", "7"),
        ("F2", "DEC", "1:2:3:4"),
    ],
)
def test_headers_that_were_found(instrument: str, keyword: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "S1.fits"
    path.write_bytes(mef([(keyword, "set", text)], instrument))
    with contextlib.suppress(GdaskError):
        read_before_computing(path)


@few_or_many
def test_cards(count: int) -> None:
    """Every card is readable after its repair, and can be written again."""

    def attempt(raw: str) -> None:
        repaired = repair_card(raw[:80].ljust(80))
        assert len(repaired) == 80
        found = fits.Header.fromstring(repaired)
        for card in found.cards:
            _ = card.keyword, card.value, card.comment
        fits.Header(list(found.cards)).tostring()

    keyword = st.one_of(
        st.sampled_from(list(PHU)),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
    )
    fuzz(
        count * 3,
        "cards",
        st.builds(
            lambda k, eq, v: f"{k:<8}{eq}{v}",
            keyword,
            st.sampled_from(["= ", "=", "  ", " ="]),
            value,
        ),
        attempt,
    )


# Bytes -----------------------------------------------------------------------------------------

flips = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6
)
cut = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))


@pytest.fixture(scope="module")
def whole() -> bytes:
    """Give the bytes of a small product: SCI, VAR, DQ of 4 arrays and a table, with checksums."""
    units = [fits.PrimaryHDU(header=fits.Header(PHU))]
    ramp = np.arange(48, dtype=np.float32).reshape(6, 8)
    for number in range(1, 5):
        for name, pixels in (("SCI", ramp), ("VAR", ramp), ("DQ", (ramp > 40).astype(np.uint16))):
            extra = {
                key: value
                for key, value in EXT.items()
                if key not in ("XTENSION", "BZERO", "BSCALE", "EXTNAME", "EXTVER")
                and "NAXIS" not in key
            }
            units.append(
                fits.ImageHDU(
                    pixels,
                    fits.Header({k: v for k, v in extra.items() if k not in ("BITPIX", "PCOUNT")}),
                    name=name,
                    ver=number,
                )
            )
    columns = [
        fits.Column(name, "20A", array=np.array(["versions", "{}"])) for name in ("item", "value")
    ]
    units.append(fits.BinTableHDU.from_columns(columns, name="REDUCTION"))
    memory = io.BytesIO()
    fits.HDUList(units).writeto(memory, checksum=True)
    return memory.getvalue()


def flipped(
    content: bytes, case: tuple[list[tuple[float, int]], float], headers_only: bool = False
) -> bytes:
    """Give content with bytes changed, at places given as parts of its length, and cut off."""
    changed = bytearray(content)
    for place, mask in case[0]:
        at = int(place * len(changed))
        if headers_only:
            at = at // 2880 * 2880 + at % 800  # the first ten cards of a record
        changed[at] ^= mask
    return bytes(changed[: int(case[1] * len(changed))])


@few_or_many
@pytest.mark.parametrize("headers_only", [False, True])
def test_flipped_bytes(count: int, headers_only: bool, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "S1.fits"

    def attempt(case: tuple[list[tuple[float, int]], float]) -> None:
        path.write_bytes(flipped(whole, case, headers_only))
        read_before_computing(path)

    fuzz(count, "flipped bytes", st.tuples(flips, cut), attempt)


@few_or_many
@pytest.mark.parametrize("form", ["gz", "fz"])
def test_flipped_bytes_of_compressed_files(
    count: int, form: str, whole: bytes, tmp_path: Path
) -> None:
    import gzip

    if form == "gz":
        packed = gzip.compress(whole)
    else:
        memory = io.BytesIO()
        unit = fits.CompImageHDU(
            np.arange(48, dtype=np.int32).reshape(6, 8),
            name="SCI",
            header=fits.Header({"ARRAYID": "x"}),
        )
        fits.HDUList([fits.PrimaryHDU(header=fits.Header(PHU)), unit]).writeto(memory)
        packed = memory.getvalue()
    path = tmp_path / "S1.fits"

    def attempt(case: tuple[list[tuple[float, int]], float]) -> None:
        path.write_bytes(flipped(packed, case))
        read_before_computing(path)

    fuzz(count // 2, f"flipped bytes {form}", st.tuples(flips, cut), attempt)


@few_or_many
def test_flipped_bytes_of_a_database(count: int, night: object, tmp_path: Path) -> None:
    from gdask.cal_service import set_local_database

    path = tmp_path / "cal.db"
    database = set_local_database(str(path))
    database.init()
    database.add_cal(night.bpm)
    content, frame = path.read_bytes(), read_headers(night.science[0])

    def attempt(case: tuple[list[tuple[float, int]], float]) -> None:
        path.write_bytes(flipped(content, case))
        associate(frame, "processed_bpm", (database_at(path),))

    fuzz(count // 2, "database", st.tuples(flips, cut), attempt)


@few_or_many
def test_values_in_a_database(count: int, night: object, tmp_path: Path) -> None:
    """Values of any type in any column, as another program could have left them."""
    from gdask.cal_service import set_local_database

    path = tmp_path / "cal.db"
    service = set_local_database(str(path))
    service.init()
    service.add_cal(night.bpm)
    names = [
        key for key in rows(service.database)[0] if key not in ("path", "instrument", "caltype")
    ]
    frame = read_headers(night.science[0])

    def attempt(case: tuple[str, object]) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            with contextlib.suppress(sqlite3.IntegrityError):  # NOT NULL
                connection.execute(f'UPDATE gdask_calibrations SET "{case[0]}" = ?', (case[1],))
            connection.commit()
        associate(frame, "processed_bpm", (Database(str(path), f"sqlite:///{path}"),))

    kinds = st.one_of(
        st.none(),
        st.integers(-(2**62), 2**62),
        st.floats(allow_nan=False),
        st.text(max_size=20),
        st.binary(max_size=20),
        st.sampled_from(
            ["[]", "[[1,2]]", "{}", "null", "[null]", "2017-05-05", '["a"]', '[[0,1,2,"x"]]', "3"]
        ),
    )
    fuzz(count // 2, "database values", st.tuples(st.sampled_from(names), kinds), attempt)


# Options and lists -----------------------------------------------------------------------------

words = st.sampled_from(
    [
        *DESCRIPTORS,
        "tags",
        "and",
        "or",
        "not",
        "in",
        "==",
        "!=",
        "<",
        ">=",
        "(",
        ")",
        "'Kshort'",
        "10.5",
        "-1",
        "None",
        "True",
        "[",
        "]",
        ",",
        ".",
        "__class__",
        "lambda",
        ":",
        "'FLAT'",
        "2017-05-05",
        "**",
        "9" * 30,
        "import",
        "f'{1}'",
        "1e999",
    ]
)


@few_or_many
def test_expressions(count: int, night: object) -> None:
    seen = view(night.science[0])

    def attempt(text: str) -> None:
        expression = parse_expression(text)
        assert expression(Values(seen)) in (True, False)

    fuzz(
        count * 2,
        "--expr",
        st.one_of(st.lists(words, max_size=14).map(" ".join), st.text(max_size=60)),
        attempt,
    )


@few_or_many
def test_parameters(count: int) -> None:
    steps = known_steps()
    names = [
        f"{step}:{name}" for step, function in steps.items() for name in params.parameters(function)
    ]

    def attempt(pairs: list[str]) -> None:
        params.check_user(params.parse_pairs(pairs), steps)

    pair = st.builds(
        "{}={}".format,
        st.one_of(st.sampled_from(names), st.text(max_size=20)),
        st.one_of(plain, st.text(max_size=20)),
    )
    fuzz(count * 2, "-p", st.lists(st.one_of(pair, st.text(max_size=20)), max_size=4), attempt)


@few_or_many
def test_parameter_files(count: int, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    steps = known_steps()

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        params.check_user(params.read_config(str(path)), steps, "-c")

    key = st.one_of(st.sampled_from([*steps, "mesh", "a.b"]), st.text(max_size=8))
    line = st.one_of(
        st.builds("{} = {}".format, key, plain), st.builds("[{}]".format, key), st.text(max_size=30)
    )
    text = st.lists(line, max_size=6).map(
        lambda lines: "\n".join(lines).encode(errors="surrogatepass")
    )
    fuzz(count, "parameter files", st.one_of(text, st.binary(max_size=60)), attempt)


@few_or_many
def test_files_of_a_campaign(count: int, tmp_path: Path) -> None:
    """What a person writes beside the results: campaign.toml, gates.toml, flags.ecsv."""
    (tmp_path / "plan").mkdir()

    def attempt(files: tuple[bytes, bytes, bytes]) -> None:
        names = ("campaign.toml", "gates.toml", "flags.ecsv")
        for name, content in zip(names, files, strict=True):
            (tmp_path / name).write_bytes(content)
            with contextlib.suppress(GdaskError):
                read_settings(tmp_path) if name != "flags.ecsv" else read_flags(tmp_path)

    words = ("campaign", "exclude", "parameters", "parameters.J", "skies", "jobs.a", "nights")
    gates = ("fwhm", "weight", "flat_counts", "failure_below", "action", "of", "off", "over")
    key = st.one_of(st.sampled_from([*words, *gates, "a.b"]), st.text(max_size=8))
    line = st.one_of(
        st.builds("{} = {}".format, key, plain),
        st.builds("[{}]".format, key),
        st.integers(1, 20000).map(lambda depth: "x = " + "[" * depth),
        st.text(max_size=30),
    )
    flags = "time file flag use header good_until because array\n"
    row = st.lists(st.text(max_size=8), min_size=6, max_size=9).map(" ".join)
    tables = st.lists(row, max_size=4).map(lambda rows: flags + "\n".join(rows))
    text = st.lists(line, max_size=6).map("\n".join)
    whole = st.one_of(
        st.one_of(text, tables).map(lambda one: one.encode(errors="surrogatepass")),
        st.binary(max_size=60),
    )
    fuzz(count, "files of a campaign", st.tuples(whole, whole, whole), attempt)


@few_or_many
def test_lists(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def attempt(content: bytes) -> None:
        Path("a.list").write_bytes(content)
        names = expand_files(["@a.list"])
        assert all(isinstance(name, str) for name in names)

    line = st.one_of(
        st.sampled_from(
            [
                "@a.list",
                "@b.list",
                "S*.fits",
                "#",
                "x.fits # y",
                "@",
                "[",
                "@@",
                "~",
                ".",
                "a\0b",
                "[!",
            ]
        ),
        st.text(max_size=20),
    )
    text = st.lists(line, max_size=8).map(
        lambda lines: "\n".join(lines).encode(errors="surrogatepass")
    )
    fuzz(count, "lists", st.one_of(text, st.binary(max_size=60)), attempt)


@few_or_many
def test_configurations(count: int, tmp_path: Path) -> None:
    path = tmp_path / "dragonsrc"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        open_databases(path)

    line = st.one_of(
        st.sampled_from(
            [
                "[calibs]",
                "databases = a.db get store",
                "databases = 'a",
                "    b.db",
                "postgresql://u:p@h:x/y get",
                "databases = http://[::1",
                "[",
                "= 3",
                "databases = %(x)s",
                "databases = ftp://x get",
                "databases = get",
            ]
        ),
        st.text(max_size=25),
    )
    text = st.lists(line, max_size=6).map(
        lambda lines: "\n".join(["[calibs]", *lines]).encode(errors="surrogatepass")
    )
    fuzz(count, "configurations", st.one_of(text, st.binary(max_size=60)), attempt)


@few_or_many
def test_commands(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whole command lines: the exit code is 0, 1 or 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAGONSRC", os.fspath(tmp_path / "rc"))
    (tmp_path / "rc").write_text("[calibs]\ndatabases = c.db get\n")
    (tmp_path / "S1.fits").write_bytes(mef([], "GSAOI"))

    def attempt(case: tuple[str, list[str]]) -> None:
        assert main([case[0], *case[1]]) in (0, 1, 2)
        capsys.readouterr()

    verbs = st.sampled_from(
        ["typewalk", "dataselect", "showd", "showpars", "showrecipes", "verify", "replay", "caldb"]
    )
    word = st.sampled_from(
        [
            "S1.fits",
            "S2.fits",
            "-d",
            "--expr",
            "--tags",
            "FLAT",
            "object",
            "gain",
            "why",
            "list",
            "-n",
            "@x",
            "--xtags",
            "exposure_time>1",
            "--inputs",
            "-q",
            "add",
            "-r",
            "default",
            "sky_correct",
            "--strict",
            "",
            "--",
            "*",
        ]
    )
    fuzz(
        count,
        "commands",
        st.tuples(verbs, st.lists(st.one_of(word, st.text(max_size=8)), max_size=5)),
        attempt,
    )
