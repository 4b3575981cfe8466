"""gdask run: a campaign, folders of raw nights in, calibrations, frames and stacks out."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

from gdask import logutils
from gdask.cli import parser_for, run_command
from gdask.cli.lists import expand_files
from gdask.model import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from gdask.campaign.job import Campaign, Job
    from gdask.campaign.run import Outcome
    from gdask.campaign.survey import Options

DESCRIPTION = """\
Reduce whole nights: find out what each raw file is, which belong together, and which calibrations
they need; then make all calibrations, sky-subtracted frames, and stacks of a night and of all
nights. Nothing is listed by hand, and the raw files are never written to. The same line again does
what has not been done; after a change, what the change touches; after a kill, what is left.

OUT/campaign.toml, if you write one, holds your own decisions (see docs/campaigns.md).
exit code: 0 all is made; 1 a job failed or is blocked; 2 wrong usage; 3 made, but a gate failed"""

EXAMPLES = """\
  gdask run raw -o reduced --dry-run     what would be done, why, and what it takes
  gdask run raw -o reduced               do it
  gdask run raw/2017* -o reduced --only 'target==NGC5128,filter==Kshort'
  gdask run raw -o reduced --submit slurm --account ast123
  gdask status reduced                   how it stands
  gdask why reduced/NGC5128/Kshort/all/S20170505S0095_image.fits"""

#: Stacks whose numbers a run shows at its end.
TOLD_PRODUCTS = 20
#: What `--only` may look at.
FIELDS = ("kind", "target", "filter", "night", "instrument", "id")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for("gdask run", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "raw", nargs="*", help="folders of raw files, files, or @LIST; none: those of the last time"
    )
    parser.add_argument(
        "-o", "--out", default="reduced", metavar="OUT", help="folder of results (default: reduced)"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="show the plan; run nothing")
    parser.add_argument("--json", action="store_true", help="the plan as JSON (with --dry-run)")
    chosen = parser.add_argument_group("what to do")
    chosen.add_argument(
        "--only",
        metavar="EXPR",
        help=f"jobs that fit, and what they need: FIELD==VALUE,... of {', '.join(FIELDS)}; VALUE "
        "may have * and ?",
    )
    chosen.add_argument(
        "--until",
        choices=("calibrations", "frames", "nights", "stacks"),
        default="stacks",
        help="stop after these (default: stacks of all nights)",
    )
    chosen.add_argument(
        "--retry", action="store_true", help="try jobs again that failed, though nothing changed"
    )
    chosen.add_argument(
        "--forget-missing", action="store_true", help="raw files of the last time may be gone"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--jobs", type=int, default=1, metavar="N", help="jobs at a time (default: 1)")
    how.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of a job (default: the machine's cores, shared by the jobs)",
    )
    how.add_argument(
        "--cluster",
        metavar="SPEC",
        help="on the workers of a cluster, a job at a time on each (docs/cluster.md): processes:N, "
        "tcp://host:port, a scheduler file, ssh:hosts, slurm, pbs, FILE.yaml",
    )
    how.add_argument("--memory", metavar="SIZE", help="most memory of a job, such as 2GiB")
    how.add_argument("-q", "--quiet", action="store_true", help="only what went wrong")
    how.add_argument(
        "--bundle",
        nargs=2,
        metavar=("JOB", "DIR"),
        help="gather raw files, calibrations, plan and log of a job in a new folder; run nothing",
    )
    _add_watch_options(parser)
    _add_batch_options(parser)
    return parser


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    """Options for a night whose files arrive."""
    group = parser.add_argument_group("while files arrive")
    group.add_argument(
        "--watch",
        action="store_true",
        help="look for new files until stopped; reduce what is whole",
    )
    group.add_argument(
        "--settle",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a sequence is whole when another begins, or after so long (default: 600)",
    )
    group.add_argument(
        "--every", type=float, default=30.0, metavar="SECONDS", help="between looks (default: 30)"
    )


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Options for a batch system."""
    batch = parser.add_argument_group(
        "on a batch system (with --threads and --memory of each job; docs/campaigns.md)"
    )
    batch.add_argument(
        "--submit", choices=("slurm", "pbs"), help="submit the jobs; type it again to go on"
    )
    batch.add_argument("--partition", default="", metavar="NAME", help="partition or queue")
    batch.add_argument("--account", default="", metavar="NAME", help="whose account pays")
    batch.add_argument(
        "--walltime",
        metavar="TIME",
        help="most time of a job, HH:MM or minutes (default: what is predicted; else the site's)",
    )
    batch.add_argument(
        "--batch-option",
        action="append",
        default=[],
        metavar="LINE",
        help="one more option for the scripts, such as --batch-option=--qos=long; may be repeated",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 a job failed or is blocked, 2 usage, 3 a gate failed."""
    return run_command(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    from gdask.campaign.report import unused_line
    from gdask.campaign.run import run_campaign
    from gdask.model import UsageError

    logutils.config(None, "quiet" if args.quiet else "standard")
    for name in ("jobs", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    if args.json and not args.dry_run:
        raise UsageError("--json: goes with --dry-run; gdask status OUT --json tells how it stands")
    options = _with_threads(options_of(args))
    if args.dry_run:
        return show_plan(options, args.json)
    if args.submit and args.cluster:
        raise UsageError(
            "--submit and --cluster: give one; a submitted job uses threads of its own"
        )
    if args.submit:
        return _submit(args, options)
    if args.bundle:
        return _bundle(options, *args.bundle)
    _check_queue(args.out)
    if args.watch:
        return _watch(args, options)
    outcome = run_campaign(options, lambda text: None if args.quiet else _say(text))
    if outcome.stopped:
        _complain(f"gdask run: stopped: {outcome.stopped}")
    if not outcome.campaign.jobs:
        return _tell_nothing(outcome.campaign)
    made = sum(one["status"] == "made" for one in outcome.records.values())
    if not args.quiet:
        _tell_numbers(outcome)
    page = os.path.join(args.out, "report", "index.html")
    shown = f", {page} shows it" if os.path.exists(page) else ""
    _say(
        f"{made} of {len(outcome.campaign.jobs)} jobs are made; gdask status {args.out} tells more"
        f"{shown}"
    )
    if unused := unused_line(outcome.campaign):
        _say(unused)
    for name in outcome.failed:
        one = outcome.records[name]
        _complain(f"{name}: {one['status']}: {one['cause']}")
    for text in outcome.gates:
        _complain(f"gate: {text}")
    return 1 if outcome.failed or outcome.stopped else 3 if outcome.gates else 0


def _tell_numbers(outcome: Outcome) -> None:
    """Say the first numbers of each stack: FWHM, zero point, depth, noise over what VAR says."""
    from gdask.reduction.gates import describe

    stacks = [job.id for job in outcome.campaign.jobs if job.kind == "stack"]
    products = [one for name in stacks for one in outcome.records.get(name, {}).get("products", ())]
    for one in products[:TOLD_PRODUCTS]:
        for line in describe(one.get("numbers", {}))[:1]:
            _say(f"{one['path']}: {line}")
    if len(products) > TOLD_PRODUCTS:
        _say(f"{len(products) - TOLD_PRODUCTS} more stacks: index.ecsv has the numbers of all")


def _tell_nothing(campaign: Campaign) -> int:
    """Say that no file gives a job, and what they are; 1."""
    counts = Counter(row["state"] for row in campaign.rows)
    text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    _complain(
        f"gdask run: nothing to reduce among {len(campaign.rows)} files ({text}); files.ecsv says "
        "why of each"
    )
    return 1


def _bundle(options: Options, job: str, folder: str) -> int:
    from gdask.campaign.bundle import make_bundle
    from gdask.campaign.survey import survey

    campaign, place = survey(options, lambda text: None)
    names = make_bundle(campaign, place, job, folder)
    _say(f"{len(names)} files of {job} are in {folder}")
    return 0


def _watch(args: argparse.Namespace, options: Options) -> int:
    from gdask.campaign.watch import watch
    from gdask.model import UsageError

    if not options.places:
        raise UsageError("--watch: name the folders to look at")
    if args.settle < 0 or args.every <= 0:
        raise UsageError("--settle and --every: expected seconds above 0")
    watch(options, args.settle, args.every, lambda text: None if args.quiet else _say(text))
    return 0


def _with_threads(options: Options) -> Options:
    """Give the options where `--cluster threads:N` is: this machine, without a cluster."""
    if not options.cluster:
        return options
    from gdask.cluster import available_cores, profile_of

    profile = profile_of(options.cluster)
    if profile["kind"] != "threads":
        return options
    cores = profile.get("workers") or available_cores()
    threads = options.threads or max(1, cores // options.at_a_time)
    return options._replace(cluster="", threads=threads)


def _submit(args: argparse.Namespace, options: Options) -> int:
    """Submit what would run; 1 where a job is blocked."""
    from gdask.campaign.submit import Wish, result_line, submit_campaign
    from gdask.engine.memory import parse_bytes

    memory = parse_bytes(args.memory)
    wish = Wish(
        args.submit,
        args.partition,
        args.account,
        _minutes(args.walltime) if args.walltime else None,
        int(memory / 2**20) or 1 if memory else None,
        tuple(args.batch_option),
        args.jobs if args.jobs > 1 else 0,
    )
    done = submit_campaign(options, wish, lambda text: None if args.quiet else _say(text))
    _say(f"{result_line(done)}; gdask status {args.out} tells how it stands")
    return int(bool(done.blocked))


def _minutes(text: str) -> int:
    """Give the minutes of HH:MM, HH:MM:SS, or minutes; UsageError for anything else."""
    from gdask.model import UsageError

    parts = text.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 3:
        raise UsageError(f"--walltime {text}: expected HH:MM, HH:MM:SS or minutes")
    numbers = [int(part) for part in parts]
    minutes = numbers[0] if len(numbers) == 1 else 60 * numbers[0] + numbers[1]
    if not minutes:
        raise UsageError(f"--walltime {text}: expected at least a minute")
    return minutes


def _check_queue(out: str) -> None:
    """Raise GdaskError where jobs of this campaign are in the queue of a batch system."""
    from gdask.campaign.batch import Patience
    from gdask.campaign.submissions import live_elements
    from gdask.model import GdaskError

    try:
        live = live_elements(out, Patience(10, 2))
    except GdaskError as error:
        _complain(f"gdask run: jobs that were submitted are not known: {error}")
        return
    if live:
        raise GdaskError(
            f"{len(live)} jobs of {out} are in the queue of {live[0].array.system}; wait for them, "
            f"go on with --submit {live[0].array.system}, or cancel them there"
        )


def _say(text: str) -> None:
    logutils.say(clean(text))


def _complain(text: str) -> None:
    logutils.say(clean(text), at_fault=True)


def options_of(args: argparse.Namespace) -> Options:
    """Give the options of a run from the command line."""
    from gdask.campaign.survey import Options
    from gdask.engine.memory import parse_bytes

    parse_bytes(args.memory)
    return Options(
        tuple(_places(args.raw)),
        args.out,
        args.jobs,
        args.threads,
        args.memory,
        only_of(args.only) if args.only else None,
        args.until,
        args.forget_missing,
        args.retry,
        args.cluster or "",
    )


def _places(raw: list[str]) -> list[str]:
    return [
        path
        for name in raw
        for path in ([name] if not name.startswith("@") else expand_files([name]))
    ]


def only_of(text: str) -> Callable[[Job], bool]:
    """Give a choice of jobs: those that every FIELD==VALUE (or !=) between commas fits."""
    import re
    from fnmatch import fnmatchcase

    from gdask.model import UsageError
    from gdask.params import closest

    terms = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*(==|=|!=)\s*(.+?)\s*", part)
        if found is None or found[1] not in FIELDS:
            near = closest(found[1], FIELDS) if found else ""
            raise UsageError(
                f"--only {text}: expected FIELD==VALUE,... with a FIELD of "
                f"{', '.join(FIELDS)}{near}"
            )
        terms.append((found[1], found[2] != "!=", found[3].strip("'\"")))
    return lambda job: all(
        fnmatchcase(str(getattr(job, field)), value) == wanted for field, wanted, value in terms
    )


def show_plan(options: Options, as_json: bool) -> int:
    """Print the plan: what would be done, why, and what it takes."""
    import json

    from gdask.campaign import records, report
    from gdask.campaign.run import predicted
    from gdask.campaign.state import states_of
    from gdask.campaign.survey import survey

    campaign, place = survey(options, _complain)
    states = states_of(campaign, records.read_records(place.out, campaign), place)
    costs, wall = predicted(campaign, states, place, options.at_a_time)
    if as_json:
        print(json.dumps(report.as_json(campaign, states, costs, wall), indent=1, default=str))
        return 0
    for line in report.tree_lines(campaign, states, costs):
        print(clean(line))
    unused = [row for row in campaign.rows if row["state"] != "used"]
    if unused:
        print(f"{len(unused)} of {len(campaign.rows)} files are not used:")
        for row in unused:
            print(clean(f"    {row['file']}: {row['state']}: {row['why']}"))
    print(report.total_line(campaign, states, costs, wall))
    return 0


if __name__ == "__main__":
    sys.exit(main())
