"""The account of a run: its numbers, its lines in the log, and budgets of bytes for each phase."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path

import pytest
from gdask.cluster import Usage

from gdask import Reduce, cal_service
from gdask.cli import main
from gdask.engine.account import RunAccount, describe_phase, describe_run, record_phase, recorded

#: The most bytes that each phase may read and write for each raw byte. Measured on the small night
#: that tests share, and 10 % more.
BUDGETS: dict[str, list[tuple[float, float]]] = {
    "flat": [(7.0, 0.45)],
    "science": [(4.6, 0.01), (1.1, 0.12), (1.95, 1.65), (1.05, 0.01), (5.5, 5.6)],
}
#: The same for the whole run, with what the client reads and writes. The bytes of the product,
#: which here has five times as many pixels as the raw frames, are taken off what is written (of a
#: flat a copy is kept in calibrations/).
WHOLE_BUDGETS = {"flat": (8.5, 0.49), "science": (19.8, 1.8)}


@pytest.fixture(scope="module")
def accounts(
    night: object, reduced: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RunAccount]:
    """Reduce flat and science once more, where code and compiled kernels are loaded already."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("accounts")
        (folder / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
        patch.setenv("DRAGONSRC", str(folder / "dragonsrc"))
        patch.chdir(folder)
        cal_service.set_local_database().add_cal(night.bpm)
        lists = {"flat": [*night.flat_on, *night.flat_off], "science": night.sequence}
        for kind, files in lists.items():
            reduction = Reduce()
            reduction.files.extend(files)
            if kind == "science":
                reduction.uparms["prepare:bad_wcs"] = "fix"
                reduction.uparms["skyCorrect:offset_sky"] = False
            reduction.runr()
            assert reduction.account is not None
            found[kind] = reduction.account
    return found


@pytest.mark.parametrize("kind", ["flat", "science"])
def test_phases_keep_to_their_budgets_of_bytes(accounts: dict[str, RunAccount], kind: str) -> None:
    account = accounts[kind]
    phases = account.as_dict()["phases"]
    taken = [(one["read_per_raw"], one["written_per_raw"]) for one in phases]
    whole = account.read / account.raw, (account.written - account.product) / account.raw
    assert len(taken) == len(BUDGETS[kind])
    for number, (most, used) in enumerate(zip(BUDGETS[kind], taken, strict=True), 1):
        assert used[0] <= most[0] and used[1] <= most[1], f"phase {number}: {used}, budget {most}"
    assert whole[0] <= WHOLE_BUDGETS[kind][0] and whole[1] <= WHOLE_BUDGETS[kind][1], whole


# Numbers and texts -----------------------------------------------------------------------------


def test_a_run_counts_its_files_and_what_is_done_meanwhile(tmp_path: Path) -> None:
    raw = tmp_path / "raw.fits"
    raw.write_bytes(bytes(1_000_000))
    with recorded([str(raw)]) as recorder:
        (tmp_path / "product").write_bytes(raw.read_bytes() * 3)
        record_phase("phase 1", 2.0, Usage(500_000, 250_000, 7, 9, 0, 1.5, 0.5))
        record_phase("phase 2", 1.0, Usage(4_000_000, 0, 10**15, 0, 2, 30.0, 20.0, 10**16))
        run = recorder.account([str(tmp_path / "product")])
    record_phase("after the end", 1.0, Usage())
    assert (run.frames, run.raw, run.product) == (1, 1_000_000, 3_000_000)
    assert [one.name for one in recorder.phases] == ["phase 1", "phase 2"]
    assert 5_000_000 <= run.read < 5_200_000  # that of workers is added to this process's
    assert 3_000_000 <= run.written < 3_100_000
    assert 30.0 <= run.user < 31.0 and 20.0 <= run.system < 21.0 and run.memory == 10**16
    figures = json.loads(json.dumps(run.as_dict()))
    assert figures["phases"][0]["read_per_raw"] == 0.5
    assert figures["phases"][0]["written_per_raw"] == 0.25
    assert figures["frames_per_minute"] == pytest.approx(60 / run.seconds)


def test_memory_of_a_run_is_its_peak_between_two_looks() -> None:
    with recorded([]) as recorder:
        before = recorder.account().memory
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of all tests before
        held = bytearray(most + 100_000_000)
        del held
        assert recorder.account().memory >= before + 100_000_000


def test_texts() -> None:
    usage = Usage(3_400_000_000, 30_000_000, 2**30, 2**31, 2, 41.04, 36.24)
    assert describe_phase(usage, 1_000_000_000) == (
        "read 3.4 GB (3.4x raw), wrote 30 MB (0.0x raw), CPU 41.0 s user + 36.2 s system, "
        "1.0 of 2.0 GiB used in the fullest of 2 workers"
    )
    assert describe_phase(usage, 0).startswith("read 3.4 GB, wrote 30 MB, CPU")
    run = RunAccount(16, 10**9, 10**8, 30.0, 2 * 10**9, 10**9, 41.0, 36.0, 2**30, ())
    assert describe_run(run) == (
        "16 files in 30.0 s: 32 frames/min, 33.3 MB/s of raw data; read 2.0 GB (2.0x raw), "
        "wrote 1.0 GB (1.0x raw); CPU 41.0 s user + 36.0 s system; peak memory 1.00 GiB"
    )


def test_the_command_ends_with_its_account(
    workspace: Path, night: object, capsys: pytest.CaptureFixture
) -> None:
    assert main(["reduce", *night.science, "-r", "checkWCS", "--account", "account.json"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{len(night.science)} files in ") and "peak memory" in line
    figures = json.loads(Path("account.json").read_text())
    assert figures["frames"] == len(night.science) and figures["phases"] == []
    assert figures["raw"] == sum(Path(path).stat().st_size for path in night.science)
    assert main(["reduce", night.science[0], "--account", "no/account.json"]) == 2
    assert "--account no/account.json: cannot be written" in capsys.readouterr().err


def test_phases_say_bytes_per_raw_byte(
    workspace: Path, night: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gdask")
    darks = Reduce()
    darks.files.extend(night.dark)
    darks.runr()
    phase, whole = (r.getMessage() for r in caplog.records if "x raw)" in r.getMessage())
    assert phase.startswith("phase 1: ") and " of " in phase
    assert whole.startswith(f"{len(night.dark)} files in ")
