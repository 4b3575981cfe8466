"""Promises of SECURITY.md about data, inputs, networks and certificates.

Data runs nothing and decides nothing about what is written; inputs are never replaced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from helpers import with_pixels

import gdask
from gdask.io import write
from gdask.io.frames import with_provenance
from gdask.model import GdaskError, UsageError, owner
from gdask.reduction.provenance import check_target, product_name
from gdask.reduction.recipe_library import find_recipe
from gdask.reduction.run import Run


@pytest.fixture
def raw(night: object, tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return Path(shutil.copy(night.science[0], tmp_path / "raw"))


def sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


# Files that are written -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["/../x", "_a/b", "_\0"])
def test_a_suffix_is_no_path(suffix: str) -> None:
    with pytest.raises(UsageError, match="not a path"):
        product_name("S1.fits", suffix)


def test_names_in_headers_decide_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fits.open(raw, mode="update") as units:
        for keyword in ("ORIGNAME", "FILENAME"):
            units[0].header[keyword] = "../../victim.fits"
    monkeypatch.chdir(tmp_path)
    frame = gdask.open(raw)
    assert frame.attrs["name"] == raw.name
    run = Run(folder=str(tmp_path), inputs={str(raw): None})
    run.write_each((frame,), "_made")
    assert [path.name for path in tmp_path.glob("*.fits")] == [f"{raw.stem}_made.fits"]
    assert (
        not (tmp_path.parent / "victim.fits").exists()
        and not (tmp_path.parent.parent / "victim.fits").exists()
    )


@pytest.mark.parametrize("way", ["itself", "folder link", "hard link", "other raw file"])
def test_a_product_never_replaces_an_input(way: str, raw: Path, tmp_path: Path) -> None:
    before = sums(raw.parent)
    frame = gdask.open(raw)
    target = raw.parent / f"{raw.stem}_made.fits"
    given = raw
    if way == "other raw file":
        shutil.copy(raw, target)
    else:
        os.rename(raw, target)  # an input that has the product's name
        given, frame = target, gdask.open(target)
    folder = raw.parent
    if way == "folder link":
        folder = tmp_path / "link"
        folder.symlink_to(raw.parent)
    if way == "hard link":
        folder = tmp_path / "other"
        folder.mkdir()
        os.link(target, folder / target.name)
    before = sums(raw.parent)
    run = Run(folder=str(folder), inputs={str(given): None})
    with pytest.raises(GdaskError, match="would replace (an input|a raw file)"):
        run.write_each((frame,), "_made")
    assert sums(raw.parent) == before


def test_a_product_never_replaces_the_calibration_that_it_was_made_with(
    raw: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "S1_image.fits"
    shutil.copy(raw, flat)
    with fits.open(flat, mode="update") as units:
        units[0].header["GEM-TLM"] = "t"
    opened = gdask.open(raw)
    frame = with_provenance(opened, gdask.open(flat), "flat_correct")
    with pytest.raises(GdaskError, match="would replace an input"):
        check_target(str(flat), frame, [str(raw)])
    check_target(str(flat), opened, [str(raw)])  # an older product may be replaced


def test_a_planted_link_is_not_followed(raw: Path, tmp_path: Path) -> None:
    before = raw.read_bytes()
    final = tmp_path / "x.fits"
    os.symlink(raw, write.temporary_name(str(final)))
    frame = with_pixels(gdask.open(raw), data=np.ones((4, 320, 320), np.float32))
    gdask.write(frame, final)
    assert (
        raw.read_bytes() == before
        and not final.is_symlink()
        and final.stat().st_size > 4 * 4 * 320 * 320
    )
    os.unlink(final)
    os.symlink(raw, final)  # the name itself: the link is replaced, not what it points at
    gdask.write(frame, final)
    assert raw.read_bytes() == before and not final.is_symlink()


def test_copies_of_calibrations_do_not_follow_links(raw: Path, tmp_path: Path) -> None:
    from gdask.caldb import cache, cache_path

    victim = tmp_path / "victim.fits"
    victim.write_bytes(b"mine")
    target = cache_path(raw, "flat", tmp_path)
    target.parent.mkdir(parents=True)
    os.symlink(victim, target)
    os.symlink(victim, target.with_name(f".{target.name}.{owner()}.part"))
    cache(raw, "flat", tmp_path)
    assert victim.read_bytes() == b"mine" and target.read_bytes() == raw.read_bytes()


def test_inputs_may_be_read_only(raw: Path, tmp_path: Path) -> None:
    raw.chmod(0o444)
    raw.parent.chmod(0o555)
    try:
        Run(folder=str(tmp_path), inputs={str(raw): None}).write_each((gdask.open(raw),), "_made")
    finally:
        raw.parent.chmod(0o755)
    assert list(tmp_path.glob("*_made.fits"))


# Code that is run -------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath(__file__).with_name('RAN').touch()\n"


@pytest.mark.parametrize(
    "arguments", [["showrecipes", "S1.fits"], ["reduce", "S1.fits", "-r", "mine"]]
)
def test_files_that_lie_about_are_not_run(arguments: list[str], raw: Path, tmp_path: Path) -> None:
    shutil.copy(raw, tmp_path / "S1.fits")
    for name in (
        "mine.py",
        "recipes.py",
        "gsaoi_image.py",
        "sitecustomize_.py",
        "conftest.py",
        "__init__.py",
    ):
        (tmp_path / name).write_text(EVIL)
    command = Path(sys.executable).with_name("gdask")
    if not command.exists():
        pytest.skip("not installed")
    done = subprocess.run(
        [command, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr
    assert not (tmp_path / "RAN").exists()


def test_a_recipe_file_is_run_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EVIL + "def own(run, frames):\n    pass\n")
    with pytest.raises(GdaskError):
        find_recipe("mine", {"GSAOI", "IMAGE"})
    assert not (tmp_path / "RAN").exists()
    assert find_recipe(f"{tmp_path / 'mine.py'}:own", {"GSAOI", "IMAGE"}).__name__ == "own"
    assert (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    "name",
    ["{}/mine.py:own", "{}/mine.so:own", "{}/mine:own", "os.system", "../mine.py", "mine.py"],
)
def test_a_product_names_no_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product's recipe is looked up among the shipped ones; only the user names a file."""
    from gdask.reduction.replay import Account, _recipe_name

    monkeypatch.chdir(tmp_path)
    for file in ("mine.py", "mine.so", "mine"):
        (tmp_path / file).write_text(EVIL + "def own(run, frames):\n    pass\n")
    recipe = {"name": name.format(tmp_path), "function": "own", "file": "mine.py", "sha256": "0"}
    with pytest.raises(
        GdaskError, match="made by the recipe own of a file mine.py; name it: --recipe"
    ):
        _recipe_name(Account("S1_image.fits", recipe, {}, None, {}, (), (EVIL,), ()), None)
    with pytest.raises(GdaskError, match="not the file that the product was made with"):
        _recipe_name(
            Account("S1_image.fits", recipe, {}, None, {}, (), (EVIL,), ()),
            f"{tmp_path}/mine.py:own",
        )
    assert not (tmp_path / "RAN").exists()


def test_only_python_files_are_recipes(tmp_path: Path) -> None:
    (tmp_path / "mine.so").write_bytes(b"\x7fELF")
    with pytest.raises(UsageError, match=r"no file .*mine.so of Python; expected FILE.py:FUNCTION"):
        find_recipe(f"{tmp_path / 'mine.so'}:own", {"GSAOI", "IMAGE"})


def test_profiles_are_data(tmp_path: Path) -> None:
    from gdask.cluster import profile_of

    (tmp_path / "evil.yaml").write_text(
        f"kind: !!python/object/apply:os.mkdir ['{tmp_path}/RAN']\n"
    )
    with pytest.raises(GdaskError, match="evil.yaml"):
        profile_of(str(tmp_path / "evil.yaml"))
    assert not (tmp_path / "RAN").exists()


def test_nothing_is_asked_of_the_network(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remote services of a configuration are listed and never asked.

    A host in a file name is a file that does not exist.
    """
    import socket

    from gdask import cli
    from gdask.caldb import associate, open_databases

    def refuse(*args: object, **kwargs: object) -> object:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    (tmp_path / "rc").write_text(
        "[calibs]\ndatabases = c.db get store\n    https://archive.gemini.edu get\n    "
        "archive.gemini.edu get\n"
    )
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "rc"))
    monkeypatch.chdir(tmp_path)
    assert len(open_databases()) == 3
    assert associate(raw, "processed_flat", open_databases()).chosen is None
    assert cli.main(["showd", "https://archive.gemini.edu/S1.fits", "-d", "object"]) in (1, 2)
    assert cli.main(["caldb", "list"]) == 0


def test_paths_in_a_database_are_read_and_compared(
    flat: Path, night: object, tmp_path: Path
) -> None:
    """A path that was changed to another file's is no calibration, and the file stays as it is."""
    import sqlite3

    from gdask import cal_service
    from gdask.caldb import associate

    service = cal_service.set_local_database(str(tmp_path / "c.db"))
    service.init()
    service.add_cal(flat)
    victim = tmp_path / "victim.fits"
    victim.write_bytes(Path(night.science[1]).read_bytes())
    before = victim.read_bytes()
    with sqlite3.connect(tmp_path / "c.db") as connection:
        connection.execute("UPDATE gdask_calibrations SET path = ?", (str(victim),))
    found = associate(night.science[0], "processed_flat", (service.database,))
    assert found.chosen is None and victim.read_bytes() == before


def test_a_planted_checkpoint_is_not_unpickled(tmp_path: Path) -> None:
    from gdask.engine import checkpoint

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "RAN"),)

    boxed = np.empty(1, object)
    boxed[0] = Evil()
    np.savez(tmp_path / "fetched.npz", **{"0/x/0": boxed})
    with pytest.raises(ValueError, match="allow_pickle"):
        checkpoint.read_fetched(str(tmp_path))
    assert not (tmp_path / "RAN").exists()


# Network ---------------------------------------------------------------------------------------


def test_processes_and_dashboards_listen_on_localhost() -> None:
    import psutil
    from gdask.cluster import connect

    with connect("processes:1") as client:
        address = client.scheduler_info()["address"]
        me = psutil.Process()
        open_ports = {
            connection.laddr.ip
            for one in (me, *me.children(recursive=True))
            for connection in one.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert address.startswith("tcp://127.0.0.1:")
    assert open_ports <= {"127.0.0.1", "::1"} and open_ports


@pytest.mark.slow
def test_tls_lets_in_who_has_a_certificate_and_nobody_else(tmp_path: Path) -> None:
    """gdask's profile with certificates connects, plain text does not.

    Scheduler and worker are started with distributed's Security.
    """
    from distributed import Client, LocalCluster
    from distributed.security import Security
    from gdask.cluster import connect

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    key, certificate = tmp_path / "me.key", tmp_path / "me.pem"
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    names = {
        f"tls_{who}_{what}": str(path)
        for who in ("scheduler", "worker", "client")
        for what, path in (("cert", certificate), ("key", key))
    }
    security = Security(tls_ca_file=str(certificate), require_encryption=True, **names)
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tls://",
        host="127.0.0.1",
        security=security,
        dashboard_address=None,
        silence_logs=50,
    ) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        profile = tmp_path / "tls.yaml"
        profile.write_text(
            f"kind: scheduler\naddress: {address}\ntls: {{ca: {certificate}, cert: "
            f"{certificate}, key: {key}}}\n"
        )
        with connect(str(profile)) as client:
            assert client.submit(sum, [1, 2, 3]).result() == 6
        with pytest.raises(OSError):
            Client(address.replace("tls://", "tcp://"), timeout=3)
        other_key, other = tmp_path / "other.key", tmp_path / "other.pem"
        subprocess.run(
            [
                openssl,
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=other",
                "-keyout",
                other_key,
                "-out",
                other,
            ],
            check=True,
            capture_output=True,
        )
        profile.write_text(
            f"kind: scheduler\ntimeout: 3\naddress: {address}\ntls: {{ca: {other}, cert: "
            f"{other}, key: {other_key}}}\n"
        )
        with pytest.raises(GdaskError), connect(str(profile)):
            pass
