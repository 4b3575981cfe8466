"""The calibration store on a real PostgreSQL server, which this test starts on loopback."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gdask.cal_service import config_text
from gdask.caldb import associate, database_at, open_databases
from gdask.caldb.database import SCHEMA_VERSION, _connection, add, init, remove, rows
from gdask.cli.caldb import main
from gdask.model import GdaskError

pytestmark = pytest.mark.slow
PASSWORD = f"p@ss/{secrets.token_hex(6)}:%"
QUOTED = PASSWORD.replace("%", "%25").replace("@", "%40").replace("/", "%2F").replace(":", "%3A")


def _programs():
    """The folder of the newest installed server programs; None if there are none."""
    on_path = shutil.which("initdb")
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    return Path(on_path).parent if on_path else debian[-1].parent if debian else None


def _user():
    """User that the server runs as: it refuses root, which needs the user of Debian's package."""
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' here")


@pytest.fixture(scope="module")
def server():
    """URL of a private server: own folder, loopback only, a free port, a password.

    It is stopped and removed at the end.
    """
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'gdask[postgresql]'")
    programs, user = _programs(), _user()
    if programs is None:
        pytest.skip("no PostgreSQL server programs here (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="gdask-postgresql-"))
    (folder / "password").write_text(PASSWORD)
    if user is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program, *words):
        # The server would keep a pipe of pg_ctl open, so only initdb's words are caught.
        done = subprocess.run(
            [programs / program, *words],
            user=user,
            cwd=folder,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=program != "pg_ctl",
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

    try:
        run(
            "initdb",
            "-D",
            folder / "data",
            "-U",
            "gdask",
            "--auth=scram-sha-256",
            "--pwfile",
            folder / "password",
            "--encoding=UTF8",
            "--no-sync",
        )
        options = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        )
        run(
            "pg_ctl",
            "-D",
            folder / "data",
            "-l",
            folder / "log",
            "-s",
            "-w",
            "-o",
            options,
            "start",
        )
        try:
            yield f"postgresql://gdask:{QUOTED}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", folder / "data", "-s", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(server):
    """The database of the server, with nothing in it."""
    database = database_at(server)
    init(database, wipe=True)
    return database


def write_flat(path, when="2017-05-04T19:30:00", filter_name="Kshort", kind="flat", seed=0):
    """A GSAOI processed flat, or a science frame, of 8 x 8 noise per array."""
    date, time = when.split("T")
    header = fits.Header(
        {
            "INSTRUME": "GSAOI",
            "OBSTYPE": "OBJECT",
            "OBSERVAT": "Gemini-South",
            "TELESCOP": "Gemini-South",
            "FILTER1": f"{filter_name}_G1105",
            "FILTER2": "Clear",
            "DATE-OBS": date,
            "UT": time,
            "TIME-OBS": time,
            "UTSTART": time,
            "UTEND": time,
            "EXPTIME": 60.0,
            "COADDS": 1,
            "LNRS": 8,
            "READMODE": "FOWLER",
            "FRAME": "FK5",
            "OBSID": "GS-2017A-Q-29-1",
            "DATALAB": "GS-2017A-Q-29-1-001",
            "OBJECT": "9132",
            "OBSCLASS": "science",
        }
    )
    if kind == "flat":
        header.update(
            {
                "OBJECT": "Domeflat",
                "OBSCLASS": "dayCal",
                "PROCFLAT": date,
                "PREPARE": date,
                "GEM-TLM": date,
            }
        )
    noise = np.random.default_rng(seed).normal(1, 0.1, (4, 8, 8)).astype("f4")
    corners = ((2049, 1), (1, 1), (1, 2049), (2049, 2049))
    units = [
        fits.ImageHDU(
            plane,
            fits.Header(
                {
                    "EXTNAME": "SCI",
                    "EXTVER": number,
                    "ARRAYID": f"array-{number}",
                    "CCDSUM": "1 1",
                    "DETSEC": f"[{x}:{x + 2047},{y}:{y + 2047}]",
                }
            ),
        )
        for number, (plane, (x, y)) in enumerate(zip(noise, corners), start=1)
    ]
    fits.HDUList([fits.PrimaryHDU(header=header), *units]).writeto(path)
    return path


def test_entries_and_association(database, tmp_path):
    science = write_flat(tmp_path / "S1.fits", "2017-05-05T02:30:00", kind="science")
    flats = [
        write_flat(tmp_path / f"S{n}_flat.fits", f"2017-05-{n:02}T19:30:00", seed=n)
        for n in (1, 3, 9)
    ]
    second_flat = write_flat(
        tmp_path / "o'; DROP TABLE gdask_calibrations; --_flat.fits", filter_name="J", seed=20
    )
    for path in (*flats, second_flat, *flats):
        add(database, path)
    assert len(rows(database)) == 4
    answer = associate(science, "flat", (database,))
    assert answer.chosen == str(flats[1])
    assert answer.candidates[-1].failed[0].text == "filter: Kshort wanted, J found"
    assert answer.candidates[0].row["detector_section"][1] == [0, 2048, 0, 2048]
    assert answer.candidates[0].row["exposure_time"] == 60.0
    assert remove(database, second_flat.name) == 1
    assert len(rows(database, "processed_flat", "GSAOI")) == 3
    assert rows(database, "processed_dark", "GSAOI") == []
    init(database)
    assert len(rows(database)) == 3
    init(database, wipe=True)
    assert rows(database) == []


WRITER = """
import sys, time
from gdask.caldb import database_at
from gdask.caldb.database import add
time.sleep(max(0, float(sys.argv[2]) - time.time()))
for path in sys.argv[3:]:
    add(database_at(sys.argv[1]), path)
"""


def test_first_writers_at_the_same_time(server, tmp_path):
    """Four processes meet a database without tables: one makes them, nothing is lost or doubled."""
    with _connection(database_at(server)) as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS gdask_calibrations, gdask_schema")
    paths = [write_flat(tmp_path / f"S{n}_flat.fits", seed=n) for n in range(8)]
    start = str(time.time() + 2)  # so that all have loaded by then
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, server, start, *paths]) for _ in range(4)
    ]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    assert [row["path"] for row in rows(database_at(server))] == [str(path) for path in paths]
    with _connection(database_at(server)) as connection:
        versions = connection.exec_driver_sql("SELECT version FROM gdask_schema").fetchall()
    assert [tuple(row) for row in versions] == [(SCHEMA_VERSION,)]


def test_older_layout_is_brought_up_to_date(database, tmp_path):
    add(database, write_flat(tmp_path / "S1_flat.fits"))
    with _connection(database) as connection:
        connection.exec_driver_sql("ALTER TABLE gdask_calibrations DROP COLUMN camera")
        connection.exec_driver_sql("UPDATE gdask_schema SET version = 0")
    assert rows(database)[0]["camera"] is None
    add(database, write_flat(tmp_path / "S2_flat.fits", seed=1))
    assert len(rows(database)) == 2


def test_configuration_and_verb(server, database, tmp_path, monkeypatch, capsys):
    config = tmp_path / "dragonsrc"
    config.write_text(f"[calibs]\ndatabases = {server} get store\n")
    monkeypatch.setenv("DRAGONSRC", str(config))
    assert open_databases() == (database,)
    flat = write_flat(tmp_path / "S1_flat.fits")
    assert [main(words) for words in (["init"], ["config"], ["add", str(flat)], ["list"])] == [
        0,
        0,
        0,
        0,
    ]
    shown = capsys.readouterr().out + config_text() + repr(database)
    assert "S1_flat.fits" in shown
    assert PASSWORD not in shown
    assert QUOTED not in shown
    assert main(["remove", "S1_flat.fits"]) == 0
    assert main(["remove", "S1_flat.fits"]) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [(QUOTED, "wrong"), ("/postgres", "/nosuch"), ("127.0.0.1:", "127.0.0.1:1")],
    ids=["password", "database", "port"],  # the password is another one in each process of xdist
)
def test_what_cannot_be_reached_is_explained_in_one_line(server, old, new):
    url = (
        server.replace(old, new)
        if ":1" not in new
        else f"postgresql://gdask:{QUOTED}@127.0.0.1:1/postgres"
    )
    with pytest.raises(
        GdaskError, match=r"^postgresql://gdask@127.0.0.1:.*cannot be used"
    ) as caught:
        rows(database_at(url))
    assert "\n" not in str(caught.value)
    assert QUOTED not in str(caught.value)
