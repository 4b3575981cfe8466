"""The stacking kernel against a plain reference, known answers and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.stack.combine import METHODS, REJECTIONS, combine
from gdask.kernels.stack.rejection import HIERARCHY, sorting_network
from gdask.model import DQ, GdaskError

OPTIONS = {
    "none": {},
    "minmax": {"nlow": 1, "nhigh": 2},
    "sigclip": {"lsigma": 1.4, "hsigma": 1.2},
    "varclip": {"lsigma": 2.0, "hsigma": 1.5},
    "noiseclip": {"lsigma": 0.8, "hsigma": 0.6},
}


def cube(
    n: int, seed: int = 1, shape: tuple[int, int] = (13, 47)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise with outliers, ties, and every DQ bit."""
    rng = np.random.default_rng(seed)
    data = np.round(rng.normal(100, 5, (n, *shape)), 1).astype(np.float32)
    data[rng.random(data.shape) < 0.05] += 300
    variance = rng.uniform(15, 35, data.shape).astype(np.float32)
    dq = np.where(rng.random(data.shape) < 0.4, 2 ** rng.integers(0, 7, data.shape), 0).astype(
        np.uint16
    )
    dq |= np.where(rng.random(data.shape) < 0.1, 2 ** rng.integers(0, 7, data.shape), 0).astype(
        np.uint16
    )
    return data, variance, dq


def survivors(d: np.ndarray, v: np.ndarray, n: int, reject: str, mclip: bool = True) -> np.ndarray:
    """Which of the usable values of one pixel are left, written for clarity."""
    keep = np.ones(d.size, bool)
    if reject == "minmax":
        order = np.argsort(d, kind="stable")
        low, high = (int(d.size * count / n + 0.001) for count in (1, 2))
        keep[order[:low]] = False
        keep[order[d.size - high :]] = False
    limits = OPTIONS[reject]
    median = np.median(d)
    scatter, light = 1.4826 * np.median(np.abs(d - median)), max(float(median), 0.0)
    beyond_noise = min(max(scatter**2 - np.median(v), (0.1 * light) ** 2), (0.3 * light) ** 2)
    expected = np.sqrt(np.median(v) + beyond_noise)
    for turn in range(100 if "clip" in reject else 0):
        kept = d[keep].astype(float)
        if reject == "sigclip" and kept.size < 3 or reject == "noiseclip" and d.size < 3:
            break
        centre = np.median(kept) if mclip or turn == 0 else kept.mean()
        sigma = {"sigclip": kept.std(), "noiseclip": expected}.get(reject, np.sqrt(v))
        new = (
            keep
            & (d >= centre - limits["lsigma"] * sigma)
            & (d <= centre + limits["hsigma"] * sigma)
        )
        if not new.any() or (new == keep).all():
            break
        keep = new
    return keep


def reference(
    data: np.ndarray, variance: np.ndarray, dq: np.ndarray, method: str, reject: str, **more: bool
) -> tuple:
    shape = data.shape[1:]
    out = np.zeros(shape), np.zeros(shape), np.full(shape, 16), np.zeros(shape, int)
    rank = np.zeros(dq.shape, int)
    for i, bit in enumerate(HIERARCHY):
        rank[(dq & bit) != 0] = i + 1
    for place in np.ndindex(shape):
        pick = (slice(None), *place)
        use = (rank[pick] == rank[pick].min()) & (rank[pick] < len(HIERARCHY))
        if not use.any():
            continue
        keep = survivors(data[pick][use], variance[pick][use], len(data), reject, **more)
        d, v = data[pick][use][keep].astype(float), variance[pick][use][keep].astype(float)
        if method == "mean":
            out[0][place], out[1][place] = d.mean(), v.mean() / d.size
        elif method == "wtmean":
            out[0][place], out[1][place] = (d / v).sum() / (1 / v).sum(), 1 / (1 / v).sum()
        else:
            out[0][place] = np.median(d) if method == "median" else np.sort(d)[(d.size - 1) // 2]
            out[1][place] = np.nan
        if reject != "minmax":  # which of equal values goes is tested below
            out[2][place] = np.bitwise_or.reduce(dq[pick][use][keep])
        out[3][place] = d.size
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reject", REJECTIONS)
@pytest.mark.parametrize("n", [1, 4, 9])
def test_reference(method: str, reject: str, n: int) -> None:
    planes = cube(n, seed=n)
    if reject == "minmax":
        if n == 1:
            pytest.skip("nothing would be left")
        planes[1][:] = planes[1][
            :, :1
        ]  # equal variances: which of equal values goes does not matter
        planes[0][:] += np.random.default_rng(5).normal(0, 0.01, planes[0].shape).astype(np.float32)
    got = combine(*planes, method=method, reject=reject, **OPTIONS[reject])
    want = reference(*planes, method, reject)
    assert [plane.dtype for plane in got] == [np.float32, np.float32, np.uint16, np.uint16]
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_array_equal(got[3], want[3])
    if "median" not in method:
        np.testing.assert_allclose(got[1], want[1], rtol=1e-6)
    if reject != "minmax":
        np.testing.assert_array_equal(got[2], want[2])


@pytest.mark.parametrize("reject", ["sigclip", "varclip", "noiseclip"])
def test_clipping_about_the_mean(reject: str) -> None:
    planes = cube(9, seed=2)
    got = combine(*planes, reject=reject, mclip=False, **OPTIONS[reject])
    want = reference(*planes, "mean", reject, mclip=False)
    np.testing.assert_array_equal(got[3], want[3])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    once = combine(*planes, reject=reject, max_iters=1, **OPTIONS[reject])[3]
    none = combine(*planes, reject=reject, max_iters=0, **OPTIONS[reject])[3]
    assert got[3].sum() < once.sum() < none.sum()


@pytest.mark.parametrize("reject", REJECTIONS)
def test_each_pixel_alone(reject: str) -> None:
    """Any cut of the planes gives the same bits, read-only, byte-swapped or strided."""
    planes = cube(7, seed=3, shape=(37, 61))
    whole = combine(*planes, method="median", reject=reject, **OPTIONS[reject])
    for window in (np.s_[:, 3:4, 7:60], np.s_[:, ::2, 5:], np.s_[:, 36:, :1]):
        parts = [plane[window] for plane in planes]
        for part in parts:
            part.flags.writeable = False
        parts[0] = parts[0].astype(">f4")
        for a, b in zip(
            combine(*parts, method="median", reject=reject, **OPTIONS[reject]), whole, strict=True
        ):
            np.testing.assert_array_equal(a, b[window[1:]])


def test_least_bad_is_used() -> None:
    """From good to worse, one plane each: the output follows; NO_DATA and NaN are never used."""
    ranking = [DQ.SATURATED, *HIERARCHY[:-1]]
    for worst in range(len(ranking)):
        dq = np.array([int(bit) for bit in ranking[worst:]] + [16, 0], np.uint16).reshape(-1, 1, 1)
        data = np.arange(10.0, 10.0 + len(dq), dtype=np.float32).reshape(-1, 1, 1)
        data[-1] = np.nan
        out = combine(data, data * 2, dq)
        assert [plane.item() for plane in out] == [10, 20, int(ranking[worst]), 1]
    nothing = combine(data[-2:], data[-2:], dq[-2:])
    assert [plane.item() for plane in nothing] == [0, 0, 16, 0]
    data = np.array([3, 5], np.float32).reshape(2, 1, 1)
    mixed = combine(data, data, np.array([2 | 4, 0], np.uint16).reshape(2, 1, 1))
    assert [plane.item() for plane in mixed] == [
        4,
        2,
        6,
        2,
    ]  # saturated and non-linear rank with perfect


def test_minmax_ties_and_counts() -> None:
    """The numbers that min-max rejection drops at each end, also of equal values.

    They are int(n * nlow / nplanes + 0.001); of equal values, the earlier plane's go.
    """
    data = np.array([9, 9, 3, 3, 5, 7], np.float32).reshape(6, 1, 1)
    variance = np.array([1, 2, 4, 8, 16, 32], np.float32).reshape(6, 1, 1)
    dq = np.array([0, 0, 2, 4, 0, 0], np.uint16).reshape(6, 1, 1)
    out = combine(data, variance, dq, reject="minmax", nlow=1, nhigh=1)
    assert [plane.item() for plane in out] == [6, (2 + 8 + 16 + 32) / 16, 4, 4]
    dq[4:] = 1  # 4 of 6 are left: int(4 * 1 / 6 + 0.001) = 0
    assert combine(data, variance, dq, reject="minmax", nlow=1, nhigh=1)[3].item() == 4
    assert combine(data, variance, dq, reject="minmax", nlow=2, nhigh=0)[3].item() == 3
    same = combine(
        np.full((5, 1, 1), 7.5, np.float32),
        variance[:5],
        dq[:5] * 0,
        reject="minmax",
        nlow=1,
        nhigh=2,
    )
    assert [plane.item() for plane in same[::3]] == [7.5, 2]


def test_scale_zero_and_weights() -> None:
    data, variance, dq = cube(5, seed=4)
    scale, zero, weights = (
        np.linspace(0.5, 2, 5),
        np.linspace(-20, 30, 5),
        np.array([1, 2, 0, 3, 4.0]),
    )
    column = (slice(None), None, None)
    by_hand = (
        (data * scale[column] + zero[column]).astype(np.float32),
        (variance * scale[column] ** 2).astype(np.float32),
    )
    for options in (
        {"reject": "sigclip"},
        {"reject": "varclip"},
        {"method": "wtmean", "reject": "none"},
    ):
        got = combine(data, variance, dq, scale=scale, zero=zero, **options)
        for a, b in zip(got, combine(*by_hand, dq, **options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    good = np.zeros_like(dq)
    got = combine(data, variance, good, method="wtmean", reject="none", weights=weights)
    np.testing.assert_allclose(got[0], np.average(data, axis=0, weights=weights), rtol=1e-6)
    np.testing.assert_allclose(got[1], (weights[column] ** 2 * variance).sum(0) / 100, rtol=1e-6)
    cube_weights = np.broadcast_to(weights[column], data.shape)
    again = combine(data, variance, good, method="wtmean", reject="none", weights=cube_weights)
    np.testing.assert_array_equal(again[0], got[0])


@pytest.mark.parametrize("n", [2, 3, 6, 7, 25, 26])
@pytest.mark.parametrize("method", ["mean", "median", "lmedian"])
def test_variance_is_the_scatter(n: int, method: str) -> None:
    rng = np.random.default_rng(n)
    data = rng.normal(50, 4, (n, 200, 200)).astype(np.float32)
    variance, dq = np.full_like(data, 16), np.zeros(data.shape, np.uint16)
    for options in ({"reject": "none"}, {"reject": "minmax", "nlow": 1, "nhigh": 1}):
        if options["reject"] == "minmax" and (method == "mean" or n < 3):
            continue
        out = combine(data, variance, dq, method=method, **options)
        assert out[0].var() / out[1].mean() == pytest.approx(
            1, abs=0.03
        )  # 4 sigma of a variance from 40000 values


def test_clipping_of_good_and_bad_values() -> None:
    """What the docstring says of small n."""
    rng = np.random.default_rng(8)
    for n, reject, most in (
        (7, "sigclip", 0),
        (9, "sigclip", 4e-4),
        (3, "varclip", 8e-3),
        (9, "varclip", 5e-3),
        (3, "noiseclip", 8e-3),
        (9, "noiseclip", 5e-3),
    ):
        data = rng.normal(0, 1, (n, 150, 150)).astype(np.float32)
        variance, dq = np.ones_like(data), np.zeros(data.shape, np.uint16)
        assert 1 - combine(data, variance, dq, reject=reject)[3].mean() / n <= most
        data[n // 2] += 30
        found = (combine(data, variance, dq, reject=reject)[3] < n).mean()
        assert found > 0.99 if n > 7 or reject != "sigclip" else found == 0


@pytest.mark.parametrize("n", [5, 9])
def test_stars_stay_whole_when_the_seeing_changes(n: int) -> None:
    """Stars whose widths change by 5 % lose nearly no values to noiseclip, and many to varclip.

    noiseclip still removes what a cosmic ray leaves on the sky and on the star's wing.
    """
    rng = np.random.default_rng(n)
    y, x = np.mgrid[-20:21, -20:21]
    core = np.hypot(x, y) < 4
    widths = 2.0 * rng.normal(1, 0.05, (25, n))
    kept: dict[str, list[float]] = {"varclip": [], "noiseclip": []}
    lost = []
    for row in widths:
        planes = np.array(
            [1e6 * np.exp(-(x**2 + y**2) / (2 * w * w)) / (2 * np.pi * w * w) for w in row]
        )
        variance = (planes + 1500).astype(np.float32)
        data = (planes + rng.normal(0, np.sqrt(variance))).astype(np.float32)
        dq = np.zeros(data.shape, np.uint16)
        whole = combine(data, variance, dq, reject="none")[0].sum(dtype=float)
        lost.append(combine(data, variance, dq, reject="noiseclip")[0].sum(dtype=float) / whole - 1)
        for reject, counts in kept.items():
            counts.append(combine(data, variance, dq, reject=reject)[3][core].mean() / n)
        data[1, 2, 2] += 2000
        data[2, 20, 26] += 0.8 * data[2, 20, 20]
        hit = combine(data, variance, dq, reject="noiseclip")[3]
        assert hit[2, 2] <= n - 1 and hit[20, 26] <= n - 1
    assert np.mean(kept["varclip"]) < 0.7 and np.mean(kept["noiseclip"]) > 0.9, kept
    assert abs(np.mean(lost)) < 1e-3


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 9])
def test_sorting_network(n: int) -> None:
    """A network that sorts all rows of zeros and ones sorts everything (Knuth's 0-1 principle)."""
    rows = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    for a, b in sorting_network(n):
        rows[:, [a, b]] = np.sort(rows[:, [a, b]], axis=1)
    assert (np.diff(rows, axis=1) >= 0).all()


def test_many_planes() -> None:
    data, variance, dq = cube(67, seed=6, shape=(5, 5))
    np.testing.assert_allclose(
        combine(data, variance, dq * 0, method="median", reject="none")[0], np.median(data, axis=0)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "mode"}, "mean, wtmean, median, lmedian"),
        ({"reject": "ccdclip"}, "minmax"),
        ({"reject": "minmax", "nlow": 2, "nhigh": 2}, "leaves nothing of 4"),
        ({"weights": np.ones(4)}, "wtmean"),
        ({"method": "wtmean", "weights": np.ones(3)}, "one per plane"),
        ({"scale": np.ones(3)}, "scale"),
    ],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(GdaskError, match=words):
        combine(*cube(4), **options)
    data, variance, dq = cube(4)
    with pytest.raises(GdaskError, match="must agree"):
        combine(data, variance[1:], dq)


@pytest.mark.parametrize("reject", list(REJECTIONS))
@pytest.mark.parametrize("method", list(METHODS))
def test_chosen_planes_are_combined_as_if_alone(method: str, reject: str) -> None:
    rng = np.random.default_rng(11)
    shape = 7, 40, 30
    data = rng.normal(100, 10, shape).astype(np.float32)
    variance = rng.uniform(80, 120, shape).astype(np.float32)
    dq = rng.choice([0, 0, 0, 0, 1, 4, 16], shape).astype(np.uint16)
    chosen = (5, 0, 3, 6)
    picked = (plane[list(chosen)] for plane in (data, variance, dq))
    options = {"method": method, "reject": reject, "nlow": 1, "nhigh": 1}
    levels = {"scale": [1, 2, 0.5, 1], "zero": [0, -3, 7, 1]}
    alone = combine(*picked, **options, **levels)
    among = combine(data, variance, dq, **options, **levels, chosen=chosen)
    for one, other in zip(alone, among, strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(GdaskError, match="count from 0"):
        combine(data, variance, dq, chosen=(0, 7))


@pytest.mark.parametrize("method", ["median", "lmedian"])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 9, 33])
@pytest.mark.parametrize("ends", [(0, 0), (1, 1), (0, 2)])
def test_medians_of_blocks_are_those_of_pixels_one_by_one(
    method: str, n: int, ends: tuple[int, int]
) -> None:
    """Hidden values, whole planes of them, ties and NaN; with `rejected`, no block is used."""
    data, variance, dq = cube(n, seed=7, shape=(11, 200))
    hidden = np.random.default_rng(8).random(dq.shape) < np.linspace(0, 1, dq.shape[1])[:, None]
    dq = np.where(hidden, dq | np.uint16(DQ.NO_DATA), dq)
    data[:, 3, ::7], variance[0, 4, ::5] = np.nan, np.inf
    nlow, nhigh = ends
    if nlow + nhigh >= n:
        pytest.skip("nothing would be left")
    options = {"method": method, "zero": np.linspace(-99, -101, n), "reject": "minmax"}
    counts = {"nlow": nlow, "nhigh": nhigh}
    rejected = np.zeros(data.shape, bool)
    expected = combine(data, variance, dq, **options, **counts, rejected=rejected)
    found = [combine(data, variance, dq, **options, **counts)]
    if not any(ends):
        found.append(combine(data, variance, dq, **options | {"reject": "none"}))
    for planes in found:
        for plane, right in zip(planes, expected, strict=True):
            np.testing.assert_array_equal(plane.view("u1"), right.view("u1"))
