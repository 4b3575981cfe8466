"""gdask status: how a campaign stands."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from gdask.cli import parser_for, run_command
from gdask.model import clean

if TYPE_CHECKING:
    from gdask.campaign.state import State


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask status",
        "Show how a campaign stands: its jobs by target, filter and night, what failed and why, "
        "and what became of the raw files. Nothing is run.",
        "  gdask status reduced\n  gdask status reduced --json",
    )
    parser.add_argument("out", metavar="OUT", nargs="?", default=".", help="folder of results")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 all is made, 1 something failed or is blocked, 2 usage."""
    return run_command(build_parser(), argv, _status)


def _status(args: argparse.Namespace) -> int:
    from gdask.campaign import records, report
    from gdask.campaign.state import states_of
    from gdask.campaign.survey import Options, survey

    out = report.find_campaign(args.out)
    campaign, place = survey(Options((), out), lambda text: None)
    known = records.read_records(place.out, campaign)
    states, said = _with_queue(states_of(campaign, known, place), out)
    if said:
        print(clean(said), file=sys.stderr)
    if args.json:
        print(json.dumps(report.as_json(campaign, states, {}, None), indent=1, default=str))
    else:
        for line in report.status_lines(campaign, states, known):
            print(clean(line))
        for line in report.unplanned_lines(place.out, campaign):
            print(clean(line))
    return int(any(state.name in ("failed", "blocked") for state in states.values()))


def _with_queue(states: dict[str, State], out: str) -> tuple[dict[str, State], str]:
    """Give the states with those of jobs in a batch system, and what went wrong with asking."""
    from gdask.campaign.batch import Patience
    from gdask.campaign.submissions import live_elements, with_queue
    from gdask.model import GdaskError

    try:
        return with_queue(states, live_elements(out, Patience(10, 2))), ""
    except GdaskError as error:
        return states, f"gdask status: jobs that were submitted are not known: {error}"


if __name__ == "__main__":
    sys.exit(main())
