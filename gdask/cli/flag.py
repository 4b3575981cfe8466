"""gdask flag: say what is wrong with a file of a campaign."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from gdask.cli import parser_for, run_command
from gdask.model import UsageError, clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdask.campaign.describe import RawFile
    from gdask.campaign.job import Job

#: Kinds of jobs, and of raw files, that calibrations are.
CALIBRATED = ("flat", "dark", "bpm")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask flag",
        "Say what is wrong with raw files or calibrations of a campaign. It is kept in "
        "OUT/flags.ecsv and holds from the next gdask run on, which makes again what it touches.",
        "  gdask flag S20170505S0104 -o reduced --as trail --because 'satellite'\n"
        "  gdask flag S20170505S0101 -o reduced --as cloud --for stack --because 'thin cloud'\n"
        "  gdask flag S20170505S0103 -o reduced --as bad --array 2 --because 'no light on it'\n"
        "  gdask flag S20170505S0099 -o reduced --header EXPTIME=60\n"
        "  gdask flag flat-GSAOI-20170505-Kshort -o reduced --good-until 2017-05-20\n"
        "  gdask flag S20170505S0104 -o reduced --withdraw --because 'it was the moon'",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="raw files; calibrations or jobs")
    parser.add_argument("-o", "--out", default=".", metavar="OUT", help="folder of results")
    parser.add_argument(
        "--as",
        dest="flag",
        default="",
        metavar="REASON",
        help="cloud, trail, guiding, pointing, test or bad",
    )
    parser.add_argument(
        "--for",
        dest="use",
        default="all",
        metavar="USE",
        help="what it is not used for: sky, stack or all (default)",
    )
    parser.add_argument(
        "--array",
        type=int,
        metavar="N",
        help="only this array of the file, from 1 as in its headers, is not used",
    )
    parser.add_argument(
        "--header",
        default="",
        metavar="KEY=VALUE",
        help="use this value of a keyword; the raw file stays as it is",
    )
    parser.add_argument(
        "--good-until", default="", metavar="DATE", help="a calibration serves until this night"
    )
    parser.add_argument(
        "--withdraw",
        action="store_true",
        help="take back all flags of these files; the table keeps them",
    )
    parser.add_argument("--because", default="", metavar="TEXT", help="why, for whoever reads it")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 usage."""
    return run_command(build_parser(), argv, _flag)


def _flag(args: argparse.Namespace) -> int:
    from gdask.campaign.describe import check_known
    from gdask.campaign.job import is_named
    from gdask.campaign.report import find_campaign
    from gdask.campaign.settings import FLAGS, add_flags, new_flag
    from gdask.campaign.survey import Options, survey
    from gdask.params import closest

    if args.withdraw:
        return _withdraw(args)
    if args.flag and not args.because:
        raise UsageError("--as: say why, with --because TEXT")
    flags = [
        new_flag(name, args.flag, args.use, args.header, args.good_until, args.because, args.array)
        for name in args.files
    ]
    out = find_campaign(args.out)
    campaign, place = survey(Options((), out), lambda text: None)
    jobs = [job.id for job in campaign.jobs]
    for name in args.files:
        meant = [file for file in campaign.files if is_named(file, name)]
        _check_array(args.array, meant)
        if args.header and meant:
            check_known(args.header, meant, campaign.files)
        if args.good_until:
            check_calibration(name, meant, campaign.jobs)
        if not meant and not (args.good_until and name in jobs):
            known = [file.name for file in campaign.files]
            raise UsageError(f"{name}: no file of this campaign{closest(name, known + jobs)}")
    add_flags(place.out, flags)
    print(
        clean(
            f"{len(flags)} flagged in {out}/{FLAGS}; gdask run -o {out} makes again what "
            "this touches"
        )
    )
    return 0


def _withdraw(args: argparse.Namespace) -> int:
    """Take back all flags of the files that are named."""
    from gdask.campaign.job import is_named
    from gdask.campaign.report import find_campaign
    from gdask.campaign.run import Options, survey
    from gdask.campaign.settings import FLAGS, add_flags, read_flags, withdrawals

    given = (args.flag, args.header, args.good_until, args.array, args.use != "all")
    if any(given):
        raise UsageError("--withdraw takes back all flags of a file: give it with --because alone")
    out = find_campaign(args.out)
    campaign, place = survey(Options((), out), lambda text: None)
    flags = read_flags(place.out)
    found = []
    for name in args.files:
        meant = [file for file in campaign.files if is_named(file, name)]
        own = [
            one for one in flags if one.file == name or any(is_named(f, one.file) for f in meant)
        ]
        if not own:
            known = ", ".join(dict.fromkeys(one.file for one in flags)) or "none"
            raise UsageError(f"{name}: no flag of it holds; files with flags: {known}")
        found += own
    add_flags(place.out, withdrawals(found, args.because))
    count = f"{len(found)} flag{'s' * (len(found) != 1)}"
    print(
        clean(f"{count} withdrawn in {out}/{FLAGS}; gdask run -o {out} makes again what it touches")
    )
    return 0


def check_calibration(name: str, meant: Sequence[RawFile], jobs: Sequence[Job]) -> None:
    """Raise UsageError where a name is that of something other than a calibration."""
    kinds = [file.kind for file in meant] + [job.kind for job in jobs if job.id == name]
    wrong = [kind for kind in kinds if not kind.startswith("processed_") and kind not in CALIBRATED]
    if wrong:
        raise UsageError(
            f"--good-until: {name} is no calibration ({wrong[0]}); name a processed calibration or "
            "its job"
        )


def _check_array(array: int | None, files: Sequence[RawFile]) -> None:
    """Raise UsageError where a file has no array of this number."""
    for file in files if array else ():
        count = len(file.row.get("array_name") or ())
        if array and array > count > 0:
            raise UsageError(f"--array {array}: {file.name} has {count}")


if __name__ == "__main__":
    sys.exit(main())
