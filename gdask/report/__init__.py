"""Reports: pages that say how a campaign, or a folder of products, stands; for a browser.

`facts` gathers what there is to know into one dictionary, report.json; `pages` makes pages of that
and of pictures, and nothing else; `files` writes what has changed. No server, no network.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["end_of_run", "gather", "write_report"]


def gather(out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Give all that a report says (`facts.gather`)."""
    from gdask.report.facts import gather as run

    return run(out, **options)


def write_report(out: str | os.PathLike[str], **options: Any) -> str:
    """Write the report of a folder of results; gives the path of its first page (`write`)."""
    from gdask.report.write import write_report as run

    return run(out, **options)


def end_of_run(out: str | os.PathLike[str]) -> int:
    """Write the report at the end of a run, with the pictures that are there; 0, or an error."""
    from gdask.model import GdaskError

    try:
        write_report(out, draw=False)
    except (GdaskError, OSError) as error:
        import sys

        print(error, file=sys.stderr)
        return 1
    return 0
