"""The calibration store: where calibrations are registered (SQLite or PostgreSQL), and which one fits a frame and why.

config: which databases to use.  database: the tables.  describe: what is known of a file, from its headers.
rules: which calibration fits (rules.toml holds the rules, by instrument and type).  report: the same in words.
copies: copies under ./calibrations/.
"""

from __future__ import annotations

from gdask.caldb.config import Database, database_at, open_databases
from gdask.caldb.copies import cache, cache_path, store
from gdask.caldb.describe import caltype_name, describe
from gdask.caldb.report import explain
from gdask.caldb.rules import (
    Association,
    Candidate,
    Spec,
    Verdict,
    associate,
    needed_types,
    rank,
    specs_for,
)

__all__ = [
    "Association",
    "Candidate",
    "Database",
    "Spec",
    "Verdict",
    "associate",
    "cache",
    "cache_path",
    "caltype_name",
    "database_at",
    "describe",
    "explain",
    "needed_types",
    "open_databases",
    "rank",
    "specs_for",
    "store",
]
