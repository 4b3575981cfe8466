"""The settings of a run: one object, changed for the length of a `with` block; text files."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from gdask.cluster import connect

from gdask.model import Settings, read_json, settings, use_settings

ROOT = Path(__file__).resolve().parents[1]


def test_settings_hold_inside_their_block() -> None:
    assert settings() == Settings()
    with use_settings(threads=3), use_settings(memory=1e9) as chosen:
        assert settings() is chosen and chosen == Settings(threads=3, memory=1e9)
    with pytest.raises(ZeroDivisionError), use_settings(flush=True):
        _ = 1 / 0
    assert settings() == Settings()


def test_a_field_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="thread"), use_settings(thread=3):
        pass


def test_threads_are_set_by_connect() -> None:
    with connect("threads:3", memory=10**9):
        assert settings() == Settings(threads=3, memory=10**9)
    assert settings() == Settings()


def sources() -> Iterator[Path]:
    for folder in ("gdask", "cluster", "recipes"):
        yield from (ROOT / folder).rglob("*.py")


def test_the_configuration_of_dask_has_no_keys_of_gdask() -> None:
    keys = {f"gdask.{field}" for field in Settings._fields} | {"gdask.engine.memory"}
    quoted = {quote + key + quote for key in keys for quote in "\"'"}
    assert [path for path in sources() if any(key in path.read_text() for key in quoted)] == []
    with connect("threads"):
        assert "gdask" not in dask.config.config


def test_a_text_file_takes_the_memory_of_its_bytes(tmp_path: Path) -> None:
    """Python's read(n) takes n bytes first, and the bound is a gigabyte."""
    (tmp_path / "a.json").write_text(json.dumps(["x" * 3_000_000]))
    tracemalloc.start()
    try:
        assert len(read_json(tmp_path / "a.json")[0]) == 3_000_000
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
