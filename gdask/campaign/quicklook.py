"""Stacks of a night that is not over: they are called so until the night's replace them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gdask.campaign import records
from gdask.campaign.job import Job

#: What names of such stacks have in place of `_image`.
MARK, IMAGE = "_quicklook", "_image"


def is_quick_look(job: Job, tonight: str) -> bool:
    """Tell whether a job stacks frames of the night (YYYYMMDD) whose files still arrive."""
    nights = (job.night, *(part for name in job.takes for part in name.split("-")))
    return bool(tonight) and job.kind == "stack" and tonight in nights


def name_of(product: str, job: Job, tonight: str) -> str:
    """Give the name of a product of a job: that of a quick look as long as it is one."""
    plain = product.replace(f"{MARK}.fits", f"{IMAGE}.fits")
    return plain.replace(f"{IMAGE}.fits", f"{MARK}.fits") if is_quick_look(job, tonight) else plain


def with_right_names(
    out: str | os.PathLike[str], job: Job, record: dict[str, Any], tonight: str
) -> dict[str, Any]:
    """Give the record of a job that is made, its products named as what they are by now."""
    names = {one["path"]: name_of(one["path"], job, tonight) for one in record["products"]}
    if all(path == name for path, name in names.items()):
        return record
    for path, name in names.items():
        os.replace(os.path.join(out, path), os.path.join(out, name))
    products = [one | {"path": names[one["path"]]} for one in record["products"]]
    named = record | {"products": products}
    records.write_record(out, job, named)
    return named


def has_quick_look(record: Mapping[str, Any]) -> bool:
    """Tell whether a record's products are those of a night that was not over."""
    return any(f"{MARK}." in one["path"] for one in record.get("products", ()))
