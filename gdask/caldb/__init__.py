"""The calibration store: where calibrations are registered, and which one fits a frame and why.

association: which databases are asked, and which calibration fits (rules.toml holds the rules,
by instrument and type of calibration).
database: what is known of a file, and the tables in SQLite or PostgreSQL.
report: an association in words.
copies: copies of calibrations under ./calibrations/.
"""

from __future__ import annotations

import importlib
from typing import Any

from gdask.caldb.association import (
    Association,
    Candidate,
    RuleVerdict,
    TypeRules,
    associate,
    needed_types,
    rank_calibrations,
    rules_for,
)
from gdask.caldb.config import Database, database_at, open_databases
from gdask.caldb.report import explain

#: Public name -> module; imported when first used, because these load SQLAlchemy.
_LAZY = {
    "cache": "gdask.caldb.copies",
    "cache_path": "gdask.caldb.copies",
    "caltype_name": "gdask.caldb.database",
    "describe": "gdask.caldb.database",
    "store": "gdask.caldb.copies",
}

__all__ = [  # noqa: PLE0604 (the names are strings: keys of the table)
    "Association",
    "Candidate",
    "Database",
    "TypeRules",
    "RuleVerdict",
    "associate",
    "database_at",
    "explain",
    "needed_types",
    "open_databases",
    "rank_calibrations",
    "rules_for",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gdask.caldb' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
