"""Campaigns: folders of raw nights in, calibrations, frames and stacks out, nothing listed by hand.

In the order of a run:

scan: which files there are, and what each is, from headers alone.
settings: `campaign.toml`, the only file that a person edits; flags: what is wrong with which file.
groups: files that are reduced together. job, planner, calibrations, plan: jobs, what each takes,
and why.
records: what a job has made, of what; what has changed since. cost: what a plan will take.
state: how each job stands. jobs: one job in a process of its own. run: all of them as one dask
graph. index, tables: what people read. report: a campaign in words.
"""

from __future__ import annotations

from gdask.campaign.job import Campaign, Job
from gdask.campaign.plan import make_plan
from gdask.campaign.run import run_campaign

__all__ = ["Campaign", "Job", "make_plan", "run_campaign"]
