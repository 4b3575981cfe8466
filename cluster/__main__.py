"""List the profiles (`profiles`), print a batch script (`script`), try a spec (`check`)."""

from __future__ import annotations

import argparse
import sys
from importlib import resources

from gdask.cluster import connect, load_profiles

from gdask.logutils import say
from gdask.model import GdaskError

DESCRIPTION = (
    "`python -m gdask.cluster profiles` lists the profiles, `... script slurm` prints a batch "
    "script, `... check SPEC` tries one."
)
SCRIPTS = {"slurm": "slurm_batch.sh", "pbs": "pbs_batch.sh"}


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m gdask.cluster", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("profiles", help="the shipped profiles")
    verbs.add_parser(
        "script", help="a batch script that holds scheduler, workers and a gdask command"
    ).add_argument("system", choices=SCRIPTS)
    verbs.add_parser(
        "check", help="start or reach a cluster, check its workers, say what there is"
    ).add_argument("spec")
    args = parser.parse_args(argv)
    if args.verb == "script":
        sys.stdout.write(resources.files(__package__).joinpath(SCRIPTS[args.system]).read_text())
    elif args.verb == "profiles":
        for name, profile in load_profiles().items():
            say(f"{name:<12} {profile['kind']}")
    else:
        return _check(args.spec)
    return 0


def _check(spec: str) -> int:
    try:
        with connect(spec) as client:
            if client is None:
                say("threads of this process")
                return 0
            for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
                say(
                    f"{address}  {worker['nthreads']} thread{'s' * (worker['nthreads'] > 1)}  "
                    f"{worker['memory_limit'] / 2**30:.1f} GiB"
                )
    except GdaskError as error:
        say(str(error), at_fault=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
