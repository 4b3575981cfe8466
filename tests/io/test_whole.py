"""Small files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdask.cli.lists import write_list
from gdask.io.whole import whole_file, write_whole


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_ends_early_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, stop: BaseException | type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "older")
    kind = stop if isinstance(stop, type) else type(stop)
    with pytest.raises(kind) as told, whole_file(path) as hidden:
        hidden.write_text("half")
        raise stop
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]
    assert kind is KeyboardInterrupt or told.value.filename == str(path)  # type: ignore[attr-defined]


def test_a_list_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("gdask.io.whole.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_list(str(tmp_path / "x.list"), [], ["a.fits"])
    assert not list(tmp_path.iterdir())


def test_bytes_text_and_a_new_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a", b"\x00")
    write_whole(tmp_path / "new" / "b", "\N{DEGREE SIGN}", durable=False)
    assert (tmp_path / "new" / "a").read_bytes() == b"\x00"
    assert (tmp_path / "new" / "b").read_bytes() == b"\xc2\xb0"
