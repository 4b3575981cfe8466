"""Reports of as many products as one likes, without a campaign: for pages and their sizes."""

from __future__ import annotations

from typing import Any

from gdask.reduction.gates import judge, shipped
from gdask.report.facts import completed
from gdask.report.products import product_facts, with_coverage, with_frames

#: A name that would run a program in a page that does not escape it.
HOSTILE = "<script>alert('x')</script>"
#: Frames of a stack.
FRAMES = 8
_NUMBERS = {
    "fwhm": 0.088972, "ellipticity": 0.073675, "fwhm_stars": 62, "zero_point": 26.209,
    "zero_point_source": "nominal", "depth_5sigma": 22.221, "noise_ratio": 1.125,
    "depth_over_predicted": 1.3694, "sky_level": 1561.3, "sky_brightness": 14.144,
    "sky_unevenness": 0.56214, "exposure_time": 60.0, "flat": "S20170505S0011_flat.fits",
}  # fmt: skip
_STACK = {
    "astrometric_rms": 0.9282, "astrometric_stars": 111, "fewest_matches": 6, "frames": FRAMES,
    "nights": 1, "frames_considered": FRAMES, "rejected_fraction": 0.0031969,
    "worst_rejected_fraction": 0.026399, "lowest_weight": 0.83238, "transparency_scatter": 0.093,
    "total_exposure_time": 480.0,
}  # fmt: skip


def synthetic(number: int) -> dict[str, Any]:
    """Give the facts of a campaign of so many products: of ten one stack, one flat, eight frames.

    Some targets and files have hostile names.
    """
    products = [_product(place) for place in range(number)]
    frames = {one["name"]: one for one in products if one["of"] == "frame"}
    products = [
        with_coverage(with_frames(one, frames, shipped()), shipped())
        if one["of"] == "image"
        else one
        for one in products
    ]
    jobs = [_job(one) for one in products if one["of"] != "frame"]
    facts = {
        "kind": "campaign",
        "name": "reduced",
        "jobs": jobs,
        "products": products,
        "gates": shipped(),
        "files": {"counts": {"used": number}, "unused": [], "more": 0},
        "flags": [],
    }
    return completed(facts, {}) | {"against": None}


def _product(place: int) -> dict[str, Any]:
    group, member = divmod(place, FRAMES + 2)
    of = {0: "image", 1: "flat"}.get(member, "frame")
    night = f"{20170501 + group % 28}"
    target = HOSTILE if group % 3 == 1 else f"Target {group}/../x" if group % 3 == 2 else "NGC5128"
    numbers: dict[str, Any] = {"kind": of, **_NUMBERS}
    name = {"image": f"S{group}_image.fits", "flat": f"S{group}_flat.fits"}.get(
        of, f"S{place}_skyCorrected.fits"
    )
    if of == "image":
        numbers |= _STACK
    elif of == "flat":
        numbers = {
            "kind": of,
            "mean_counts": 27175.0,
            "lamp_scatter": 0.0007,
            "bad_fraction": 0.002,
        }
    if group % 5 == 4 and of != "flat":
        numbers["noise_ratio"] = 1.9
    tables = {
        "frames": [_row(group, member) for member in range(FRAMES)] if of == "image" else [],
        "skies": ["S1.fits", "S2.fits"] if of == "frame" else [],
        "sources": 137, "versions": {}, "settings": {}, "trouble": "", "wavelength": 2.15e-6,
        "coverage": {"centre_covered": 0.98, "area_covered": 0.71} if of == "image" else {},
    }  # fmt: skip
    facts = product_facts(f"{target}/J/{night}/{name}", numbers, judge(numbers, kind=of), tables)
    return facts | {
        "job": f"{of}-{group}", "kind": of, "instrument": "GSAOI", "filter": "J",
        "target": "" if of == "flat" else target, "night": night, "level": group % 2,
        "gdask": "0.1.0", "left_out": [f"S9.fits pixels {HOSTILE}"], "calibrations": [],
        "parameters": {"a:b": HOSTILE}, "inputs": FRAMES, "content": str(place), "size": 10**7,
        "is_old": False, "raw": f"S{place}", "tables": tables, "wavelength": 2.15e-6,
        "object": target, "made_by": "reduce @inputs.list", "commands": {"again": "gdask replay x"},
    }  # fmt: skip


def _row(group: int, member: int) -> dict[str, Any]:
    return {
        "name": f"S{group * (FRAMES + 2) + member + 2}_skyCorrected.fits", "mjd": 57877.99,
        "matches": 44, "rms": 1.0699, "fwhm": 0.0963, "ellipticity": 0.12, "sky": 1550.0,
        "exposure_time": 60.0, "airmass": 1.031, "throughput": None, "weight": 0.838,
        "rejected": 0.00076,
    }  # fmt: skip


def _job(product: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": product["job"], "kind": product["kind"], "recipe": "alignAndStack",
        "instrument": "GSAOI", "target": product["target"], "filter": "J",
        "night": product["night"], "state": "made", "cause": "", "log": [], "inputs": ["S1.fits"],
        "frames_of": [], "needs": [], "calibrations": [], "parameters": {}, "notes": [],
        "left_out": product["left_out"], "level": 0, "gdask": "0.1.0", "begun": "", "waited": 1.5,
        "seconds": 12.0, "seconds_planned": 10.0, "memory": 2**29, "memory_planned": None,
        "written": 2**27, "read": 2**28, "tries": [], "made_by": "reduce @inputs.list",
        "products": [product["path"]], "commands": {},
    }  # fmt: skip
