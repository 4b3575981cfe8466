"""gdask plan: the plan of a campaign, and jobs to pin."""

from __future__ import annotations

import argparse
import sys

from gdask.cli import parser_for, run_command
from gdask.cli.run import show_plan


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask plan",
        "Show the plan of a campaign, or copy a job of it into campaign.toml, where you can edit "
        "its inputs, parameters and calibrations; what is there holds.",
        "  gdask plan reduced\n  gdask plan reduced --pin stack-GSAOI-NGC5128-Kshort-all",
    )
    parser.add_argument("out", metavar="OUT", help="folder of results")
    parser.add_argument("--pin", metavar="JOB", help="copy this job into OUT/campaign.toml")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 usage."""
    return run_command(build_parser(), argv, _plan)


def _plan(args: argparse.Namespace) -> int:
    from gdask.campaign.pinned import pinned_lines
    from gdask.campaign.settings import FILE, pin
    from gdask.campaign.survey import Options, survey

    options = Options((), args.out)
    if not args.pin:
        return show_plan(options, args.json)
    campaign, place = survey(options, lambda text: None)
    job = campaign.job(args.pin)
    pin(place.out, job.id, pinned_lines(job, campaign))
    print(f"{job.id} is in {args.out}/{FILE}; edit it there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
