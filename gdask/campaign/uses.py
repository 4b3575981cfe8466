"""What a raw file ends in: products of its jobs, and those that are made of these."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from gdask.campaign.describe import RawFile
from gdask.campaign.job import Campaign, Job
from gdask.campaign.jobs import SUFFIXES
from gdask.reduction.provenance import product_name


def ends_of(
    file: RawFile, job: Job, campaign: Campaign, known: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    """Say what a raw file ends in by way of one of its jobs: paths below the folder of results.

    Of a frame these are its own product and the stacks; those that it was left out of say why.
    """
    record = known.get(job.id, {})
    own = product_name(file.name, SUFFIXES["frames"])
    products = record.get("products", ())
    makes = [p for p in products if job.kind != "frames" or os.path.basename(p["path"]) == own]
    yield from (f"makes {one['path']}" for one in makes)
    if job.kind == "frames" and file.key in job.inputs and products and not makes:
        yield "is sky for the frames on target there: none is made of it, and no stack has it"
    for user in users_of(job, campaign):
        after = known.get(user.id, {})
        if job.kind == "frames" and file.key in job.inputs:
            if makes or record.get("status") != "made":
                yield from _in_stack(own, user, after)
            continue
        paths = [one["path"] for one in after.get("products", ())]
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        made = f": {paths[0]}{more}" if paths else ""
        yield f"goes into {user.id} ({after.get('status', 'not run yet')}){made}"


def users_of(job: Job, campaign: Campaign) -> list[Job]:
    """Give the jobs that are made of a job's products, and of the products of these, in order."""
    found = {job.id}
    for one in campaign.jobs:
        if found & set(one.needs):
            found.add(one.id)
    return [one for one in campaign.jobs if one.id in found and one.id != job.id]


def _in_stack(frame: str, stack: Job, record: Mapping[str, Any]) -> Iterator[str]:
    """Say whether a frame is in a stack; or why not."""
    paths = ", ".join(one["path"] for one in record.get("products", ()))
    out = [text for text in record.get("left_out", ()) if text.startswith(frame)]
    if frame.removesuffix(f"{SUFFIXES['frames']}.fits") in {
        name.partition(".")[0] for name in stack.not_stacked
    }:
        yield f"not in {stack.id}: a flag keeps it out"
    elif out:
        yield from (f"left out of {stack.id}: {text.removeprefix(frame).strip()}" for text in out)
    elif frame in record.get("parts", {}).get("frames", {}):
        yield f"is in {paths or stack.id}"
    else:
        yield f"goes into {stack.id} ({record.get('status', 'not run yet')}), if it is on target"
