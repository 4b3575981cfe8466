"""What is said of workers whose processors compute otherwise."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from gdask.cluster import checks

CODE = "from gdask.model import arithmetic_of_processor as a; print(a())"


def arithmetic(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | variables,
    )
    return done.stdout.strip()


def test_processors_of_another_kind_are_named(caplog: pytest.LogCaptureFixture) -> None:
    here, other = arithmetic(), arithmetic(OPENBLAS_CORETYPE="Prescott")
    assert here == arithmetic() == checks.arithmetic_of_processor()
    if here == other:
        pytest.skip("linear algebra has one way on this processor")
    room = {"free": 10**12, "scratch": "/x", "pools": {"OMP_NUM_THREADS": "1"}}
    workers = {
        "tcp://a": {"host": "old", "arithmetic": other, **room},
        "tcp://b": {"host": "new", "arithmetic": here, **room},
    }
    with caplog.at_level(logging.INFO, "gdask"):
        checks._warn_of_environment(workers)
        assert f"{other}: old" in caplog.text and f"this host: {here}" in caplog.text
        caplog.clear()
        checks._warn_of_environment({"tcp://b": workers["tcp://b"]})
        assert caplog.text == ""
