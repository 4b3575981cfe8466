"""What `gdask plan --pin` writes of a job: all that a person may change, as it is planned."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gdask import params
from gdask.campaign.job import Campaign, Job
from gdask.campaign.tables import toml_key
from gdask.instruments import instrument_named, step_defaults

#: Tags of the files of each kind of job, beside the instrument, by which its recipe is found.
_TAGS = {
    "dark": {"CAL", "DARK"},
    "bpm": {"CAL", "FLAT", "IMAGE"},
    "flat": {"CAL", "FLAT", "IMAGE"},
    "frames": {"IMAGE"},
    "stack": {"IMAGE"},
}


def pinned_lines(job: Job, campaign: Campaign) -> list[str]:
    """Give the lines of a job for campaign.toml: inputs, jobs taken, parameters, calibrations.

    Parameters that the plan leaves to the recipe are there as comments, with their defaults; so
    are the next best calibrations.
    """
    name = f"jobs.{toml_key(job.id)}"
    files = {file.key: file.name for file in campaign.files if file.kind != "duplicate"}
    lines = [
        f"[{name}]",
        "# It stays as it is here, whatever files come. What you take out is planned as before.",
    ]
    if job.inputs:
        lines += ["inputs = [", *(f"    {json.dumps(k)},  # {files[k]}" for k in job.inputs), "]"]
    if job.takes:
        lines += ["takes = [", *(f"    {json.dumps(one)}," for one in job.takes), "]"]
    lines += ["", f"[{name}.parameters]"]
    lines += [f"{toml_key(key)} = {json.dumps(value)}" for key, value in job.parameters]
    lines += [f"# {line}" for line in _defaults(job)]
    if job.calibrations:
        lines += ["", f"[{name}.calibrations]"]
    for choice in job.calibrations:
        source = f"{toml_key(choice.caltype)} = {json.dumps(choice.source)}"
        lines.append(f"{source}  # {choice.why}" if choice.source else f"# {source}: {choice.why}")
        lines += [f"# next best: {one}" for one in choice.misses]
    return lines


def _defaults(job: Job) -> Iterator[str]:
    """Give the parameters of the recipe that the plan does not set, with their defaults."""
    from gdask.reduction.recipe_library import find_recipe, steps_in

    given = params.normalise(dict(job.parameters))
    instrument = instrument_named(job.instrument)
    recipe = find_recipe(job.recipe, {job.instrument, *_TAGS[job.kind]})
    yield f"the recipe {job.recipe} takes, if nothing is said (showpars FILE STEP explains each):"
    for step, function in sorted(steps_in(recipe).items()):
        own = step_defaults(instrument, step)
        for name, parameter in params.parameters(function).items():
            if parameter in params.COMMON_PARAMETERS or {name, f"{step}:{name}"} & given.keys():
                continue
            value = own.get(name, parameter.default)
            text = json.dumps("None" if value is None else value, default=str)
            yield f"{toml_key(f'{step}:{name}')} = {text}"
