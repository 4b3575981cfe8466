"""The same bits wherever the work runs; the meaning of each `--cluster SPEC`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from astropy.io import fits
from gdask.cluster import connect, load_profiles, profile_of
from helpers import loopback_cluster

from gdask import GdaskError, Reduce

IMAGE = "S20170505S0095_image.fits"


def planes(path: str | Path) -> dict[tuple[str, int], bytes]:
    """Read the bytes of every image and table of measurements in a product."""
    with fits.open(path) as hdus:
        return {
            (hdu.name, hdu.ver): hdu.data.tobytes()
            for hdu in hdus[1:]
            if hdu.name in ("SCI", "VAR", "DQ", "OBJMASK", "OBJCAT")
        }


@pytest.mark.parametrize("cluster", ["threads:1", "processes:2"])
def test_the_same_bits_with_one_thread_two_and_on_processes(
    calibrated: Path, reduced: Path, night: object, cluster: str
) -> None:
    """`reduced` was made by the threads of all cores."""
    reduction = Reduce()
    reduction.files.extend(night.sequence)
    reduction.uparms = {"prepare:bad_wcs": "fix", "skyCorrect:offset_sky": False}
    reduction.cluster = cluster
    reduction.runr()
    found, expected = planes(IMAGE), planes(reduced / IMAGE)
    assert found.keys() == expected.keys() and {"SCI", "VAR", "DQ"} <= {name for name, _ in found}
    assert [key for key in found if found[key] != expected[key]] == []


def test_specs_of_clusters() -> None:
    assert profile_of("threads:3")["workers"] == 3 and profile_of("threads:3")["kind"] == "threads"
    assert profile_of("processes:4") | {"workers": 4, "kind": "processes"} == profile_of(
        "processes:4"
    )
    assert profile_of("tcp://10.0.0.1:8786") == {
        "kind": "scheduler",
        "address": "tcp://10.0.0.1:8786",
    }
    assert {"threads", "processes"} <= set(load_profiles())


def test_scheduler_files_and_profiles_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "scheduler.json").write_text("{}")
    assert profile_of(str(tmp_path / "scheduler.json")) == {
        "kind": "scheduler",
        "scheduler_file": str(tmp_path / "scheduler.json"),
    }
    (tmp_path / "mine.yaml").write_text("big: {kind: processes, workers: 7, threads: 2}\n")
    assert profile_of("big", str(tmp_path / "mine.yaml")) == {
        "kind": "processes",
        "workers": 7,
        "threads": 2,
    }
    assert profile_of("big:3", str(tmp_path / "mine.yaml"))["workers"] == 3


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o600, ""), (0o644, "others may read or change"), (0o660, "others may"), (0o666, "refused")],
)
def test_a_scheduler_file_is_its_owner_s_alone(
    tmp_path: Path, mode: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can change it decides who is sent the code of this command."""

    path = tmp_path / "scheduler.json"
    with loopback_cluster() as cluster:
        path.write_text(json.dumps({"address": cluster.scheduler_address}))
        path.chmod(mode)
        if said == "refused":
            with pytest.raises(GdaskError, match="everybody may change"), connect(str(path)):
                pass
            return
        with caplog.at_level(logging.WARNING, "gdask"), connect(str(path)) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        assert said in caplog.text and ("scheduler file" in caplog.text) == bool(said)


@pytest.mark.parametrize("spec", ["thread", "threads:0", "threads:many", "processes:-1", "tcp"])
def test_specs_that_are_not_known_are_refused(spec: str) -> None:
    with pytest.raises(GdaskError, match=f"--cluster {spec}: "):
        profile_of(spec)


def test_a_scheduler_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "gone: {kind: scheduler, address: 'tcp://127.0.0.1:9', timeout: 1}\n"
    )
    with (
        pytest.raises(GdaskError, match="does not answer"),
        connect("gone", str(tmp_path / "p.yaml")),
    ):
        pass


def test_threads_are_as_many_as_asked() -> None:
    import dask

    with connect("threads:3") as client:
        assert (
            client is None
            and dask.config.get("num_workers") == 3
            and dask.config.get("scheduler") == "threads"
        )
    assert dask.config.get("num_workers", None) != 3


def test_an_existing_scheduler_is_used_and_left_running(tmp_path: Path) -> None:
    import dask.array as da
    from distributed import Client

    with loopback_cluster() as cluster:
        spec = cluster.scheduler_address
        with connect(spec) as client:
            assert (
                da.arange(10, chunks=5).sum().compute() == 45 and client.scheduler.address == spec
            )
        with Client(cluster.scheduler_address) as again:
            assert again.submit(sum, [1, 2]).result() == 3


def test_functions_of_a_users_file_reach_worker_processes(tmp_path: Path) -> None:
    import dask.array as da
    from gdask.cluster import connect

    from gdask.reduction.recipe_library import load_file

    path = tmp_path / "mine.py"
    path.write_text(
        "def plus(block, amount):\n    return shifted(block) + amount\n\n\ndef "
        "shifted(block):\n    return block + 1\n"
    )
    module = load_file(str(path))
    path.unlink()  # the workers have nothing to import it from
    with connect("processes:1"):
        result = da.arange(6, chunks=3).map_blocks(module.plus, amount=10, dtype=int).compute()
    assert result.tolist() == [11, 12, 13, 14, 15, 16]


def test_another_text_of_a_users_file_is_another_module(tmp_path: Path) -> None:
    from gdask.reduction.recipe_library import load_file

    path = tmp_path / "mine.py"
    path.write_text("def plus(block):\n    return block + 1\n")
    one = load_file(str(path)).plus.__module__
    path.write_text("def plus(block):\n    return block + 2\n")
    assert load_file(str(path)).plus.__module__ != one
