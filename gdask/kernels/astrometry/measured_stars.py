"""Measured stars of all frames in one common plane, and the terms that displace them.

A displacement of a frame is a sum of up to 20 terms, which come in the order in which they are
allowed as stars become enough: shift x, y; rotation; scale; two shears; six quadratic and eight
cubic ones. Every sum runs in one fixed order in compiled code: no BLAS, same bits always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.arithmetic import sine_cosine
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.projection import CORRECTION_UNIT, tangent_plane, tangent_sky
from gdask.types import Arcsec, Degrees

#: Number of all terms of a displacement.
TERMS = 20
#: Numbers of leading terms that may be in use (shift, + rotation, linear, quadratic, cubic), and
#: the order of the polynomial that each stands for.
TERM_COUNTS = (2, 3, 6, 12, 20)
ORDER_OF_COUNT = {2: 0, 3: 1, 6: 1, 12: 2, 20: 3}
#: Folds of stars by which the number of terms is cross-validated.
FOLDS = 5

#: Each term is one monomial along x and one along y (numbers as in `monomials`), with these signs;
#: sign 0: none.
_X_MONOMIAL = np.array([0, 0, 2, 1, 1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 8, 9, 0, 0, 0, 0])
_Y_MONOMIAL = np.array([0, 0, 1, 2, 2, 1, 0, 0, 0, 3, 4, 5, 0, 0, 0, 0, 6, 7, 8, 9])
_X_SIGN = np.array([1.0, 0, -1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
_Y_SIGN = np.array([0, 1.0, 1, 1, -1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1])
#: Monomials up to the third order, and their products, up to the sixth order: the monomial number
#: d (d + 1) / 2 + j has order d and power j of y.
MONOMIALS, PRODUCTS = 10, 28
_ORDER_OF_MONOMIAL = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
_Y_POWER = np.array([0, 0, 1, 0, 1, 2, 0, 1, 2, 3])

#: x, y (arcsec) and flux of a list of sources or stars.
SourceList = tuple[np.ndarray, np.ndarray, np.ndarray]
#: Coefficients of a correction's polynomials along x and y (arcsec), see `to_polynomials`.
Polynomials = tuple[tuple[float, ...], tuple[float, ...]]


class Measurements(NamedTuple):
    """The usable sources of one frame; arrays of one value per source unless said otherwise.

    x, y: instrument plane (arcsec) after the static distortion, uncorrected; ex, ey: errors
    (arcsec); flux: any unit, the same for all frames; array: index of the detector array; ra, dec,
    pa: the header's pointing and position angle (degrees), which take the plane to the sky as in
    `geometry.Geometry`; outline: corners (4, 2) of each array in the plane (none: the rectangle
    around all frames' sources); signal: flux over its error, brought to one exposure time for all
    frames (none: the flux), by which a few stars are compared: the scale of a fitted flux hangs on
    the star image, of which a few stars say little; epoch: number of the night.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    ex: np.ndarray
    ey: np.ndarray
    flux: np.ndarray
    array: np.ndarray
    ra: Degrees
    dec: Degrees
    pa: Degrees
    outline: tuple[np.ndarray, ...] = ()
    signal: np.ndarray | None = None
    epoch: int = 0


class Problem(NamedTuple):
    """Measurements of all frames, one after the other (float64 unless said).

    frame, star: int64 indices; x, y: instrument plane, arcsec; header_xi, header_eta: the same
    sources in the common tangent plane as the headers say, with no correction, arcsec; weight:
    1 / arcsec^2, 0 to ignore; cosine, sine: per frame, what turns the instrument plane into the
    common one: (c x - s y, s x + c y); stars: their number; centre: RA, Dec (degrees) of the
    common plane's origin.
    """

    frame: np.ndarray
    star: np.ndarray
    x: np.ndarray
    y: np.ndarray
    header_xi: np.ndarray
    header_eta: np.ndarray
    weight: np.ndarray
    cosine: np.ndarray
    sine: np.ndarray
    stars: int
    centre: tuple[Degrees, Degrees]


def median_pointing(frames: Sequence[Measurements]) -> tuple[Degrees, Degrees]:
    """Median RA and Dec (degrees) of the frames' pointings."""
    ra0, dec0 = frames[0].ra, frames[0].dec
    pointings = np.array([f.ra for f in frames]), np.array([f.dec for f in frames])
    xi, eta = tangent_plane(*pointings, ra0, dec0)
    ra, dec = tangent_sky(np.median(xi), np.median(eta), ra0, dec0)
    return float(ra), float(dec)


def to_common_plane(
    frame: Measurements, x: np.ndarray, y: np.ndarray, centre: tuple[Degrees, Degrees]
) -> tuple[np.ndarray, np.ndarray]:
    """Take positions (arcsec) in a frame's instrument plane to the tangent plane about the centre.

    Exact, as the frame's header says.
    """
    s, c = sine_cosine.few(frame.pa)
    ra, dec = tangent_sky(c * x + s * y, -s * x + c * y, frame.ra, frame.dec)
    return tangent_plane(ra, dec, *centre)


def to_instrument_plane(
    frame: Measurements, xi: np.ndarray, eta: np.ndarray, centre: tuple[Degrees, Degrees]
) -> tuple[np.ndarray, np.ndarray]:
    """Take positions (arcsec) in the common plane to a frame's instrument plane."""
    s, c = sine_cosine.few(frame.pa)
    u, v = tangent_plane(*tangent_sky(xi, eta, *centre), frame.ra, frame.dec)
    return c * u - s * v, s * u + c * v


def common_vectors(
    problem: Problem, frame: int | np.ndarray, dx: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn vectors in the instrument plane of a frame (or each one's frame) to the common plane."""
    c, s = problem.cosine[frame], problem.sine[frame]
    return c * dx - s * dy, s * dx + c * dy


def instrument_vectors(
    problem: Problem, frame: int | np.ndarray, dxi: np.ndarray, deta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn vectors in the common plane to the instrument plane of a frame (or each one's frame)."""
    c, s = problem.cosine[frame], problem.sine[frame]
    return c * dxi + s * deta, c * deta - s * dxi


@njit(cache=True, nogil=True, error_model="numpy")
def turn_to_instrument(
    frame: np.ndarray, cosine: np.ndarray, sine: np.ndarray, dx: np.ndarray, dy: np.ndarray
) -> None:
    """Turn vectors in the common plane to their frames' instrument planes, in place."""
    for m in range(frame.size):
        c, s = cosine[frame[m]], sine[frame[m]]
        dx[m], dy[m] = c * dx[m] + s * dy[m], c * dy[m] - s * dx[m]


def frame_rows(problem: Problem, frame: int) -> np.ndarray:
    """Row numbers of one frame's measurements."""
    return np.arange(*np.searchsorted(problem.frame, [frame, frame + 1]))


def by_frame(frames: Sequence[Measurements], values: np.ndarray) -> list[np.ndarray]:
    """Split one value per measurement by frames."""
    return np.split(values, np.cumsum([len(f.x) for f in frames])[:-1])


def good_sources(frame: Measurements, good: np.ndarray) -> Measurements:
    """A frame's measurements without those that are not good."""
    if good.all():
        return frame
    names = ["x", "y", "ex", "ey", "flux", "array"]
    names += ["signal"] if frame.signal is not None else []
    return frame._replace(**{name: np.asarray(getattr(frame, name))[good] for name in names})


def joint_problem(frames: Sequence[Measurements], centre: tuple[Degrees, Degrees]) -> Problem:
    """Put all measurements in a row; star numbers and weights are still 0."""
    places = [(np.asarray(f.x, float), np.asarray(f.y, float)) for f in frames]
    common = [to_common_plane(f, x, y, centre) for f, (x, y) in zip(frames, places, strict=True)]
    # The two tangent planes differ by a shift and a turn, to 1e-7 of any correction: the turn is
    # taken at the pointing, by a cross with arms of 30 arcsec.
    arm = np.array([30.0, -30.0, 0.0, 0.0])
    crosses = [to_common_plane(f, arm, arm[[2, 3, 0, 1]], centre) for f in frames]
    frame = np.repeat(np.arange(len(frames)), [len(x) for x, _ in places])
    return Problem(
        frame=frame,
        star=np.zeros_like(frame),
        x=np.concatenate([x for x, _ in places]),
        y=np.concatenate([y for _, y in places]),
        header_xi=np.concatenate([xi for xi, _ in common]),
        header_eta=np.concatenate([eta for _, eta in common]),
        weight=np.zeros(len(frame)),
        cosine=np.array([(xi[0] - xi[1] + eta[2] - eta[3]) / 120 for xi, eta in crosses]),
        sine=np.array([(eta[0] - eta[1] - xi[2] + xi[3]) / 120 for xi, eta in crosses]),
        stars=1,
        centre=centre,
    )


def mean_flux(frames: Sequence[Measurements], problem: Problem) -> np.ndarray:
    """Mean flux of each star over the frames in use (NaN where none)."""
    flux = np.concatenate([f.flux for f in frames]).astype(float)
    seen = problem.weight > 0
    number = np.bincount(problem.star[seen], minlength=problem.stars)
    total = np.bincount(problem.star[seen], flux[seen], minlength=problem.stars)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def monomials(x: float, y: float, out: np.ndarray) -> None:
    """Write 1, u, v, u2, uv, v2, u3, u2v, uv2, v3 at (x, y) arcsec, in units of 60 arcsec."""
    u, v = x / CORRECTION_UNIT, y / CORRECTION_UNIT
    out[0], out[1], out[2] = 1.0, u, v
    out[3], out[4], out[5] = u * u, u * v, v * v
    out[6], out[7], out[8], out[9] = out[3] * u, out[3] * v, u * out[5], v * out[5]


@njit(cache=True, nogil=True, error_model="numpy")
def monomial_coefficients(terms: np.ndarray) -> np.ndarray:
    """20 terms -> (2, 10) coefficients of the monomials along x and y."""
    out = np.zeros((2, MONOMIALS))
    for k in range(TERMS):
        out[0, _X_MONOMIAL[k]] += _X_SIGN[k] * terms[k]
        out[1, _Y_MONOMIAL[k]] += _Y_SIGN[k] * terms[k]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def term_sums(sums: np.ndarray) -> np.ndarray:
    """(2, 10) sums over monomials along x and y -> 20 sums over terms.

    The transpose of `monomial_coefficients`.
    """
    out = np.zeros(TERMS)
    for k in range(TERMS):
        out[k] = _X_SIGN[k] * sums[0, _X_MONOMIAL[k]] + _Y_SIGN[k] * sums[1, _Y_MONOMIAL[k]]
    return out


def prior_weights(prior: Arcsec) -> np.ndarray:
    """1 / sigma^2 (arcsec^-2) of each of the 20 terms, by their expected size.

    Quadratic and cubic terms `prior` arcsec at 60 arcsec from the pointing; shears five times
    that; shift, rotation and scale are free (0).
    """
    return np.array([0.0] * 4 + [1 / (5 * prior) ** 2] * 2 + [1 / prior**2] * 14)


def to_polynomials(terms: np.ndarray) -> Polynomials:
    """20 terms -> coefficients of 1, x, y, x2, xy, y2, x3, x2y, xy2, y3 for the x and the y axis.

    Coefficients in arcsec; x, y of the polynomials in units of 60 arcsec.
    """
    x, y = monomial_coefficients(np.asarray(terms, float))
    return tuple(x.tolist()), tuple(y.tolist())


@njit(cache=True, nogil=True, error_model="numpy")
def displace(x: np.ndarray, y: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Displacement (arcsec, along x and y) of points (arcsec) by one set of 20 terms."""
    coefficients, values = monomial_coefficients(terms), np.zeros(MONOMIALS)
    dx, dy = np.zeros(x.size), np.zeros(x.size)
    for m in range(x.size):
        monomials(x[m], y[m], values)
        for k in range(MONOMIALS):
            dx[m] += values[k] * coefficients[0, k]
            dy[m] += values[k] * coefficients[1, k]
    return dx, dy


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _product(a: int, b: int) -> int:
    """Number of the product of two monomials, given by their numbers."""
    order = _ORDER_OF_MONOMIAL[a] + _ORDER_OF_MONOMIAL[b]
    return order * (order + 1) // 2 + _Y_POWER[a] + _Y_POWER[b]


@njit(cache=True, nogil=True, error_model="numpy")
def normal_matrices(
    group: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray, groups: int
) -> np.ndarray:
    """(groups, 20, 20) normal matrices: sums of terms^T w terms over each group's points.

    They are built from the sums of the monomials' products. group: int64 per point.
    """
    sums, values, powers = np.zeros((groups, PRODUCTS)), np.zeros(MONOMIALS), np.zeros(PRODUCTS)
    for m in range(x.size):
        w = weight[m]
        if not w > 0:
            continue
        monomials(x[m], y[m], values)
        for k in range(MONOMIALS):
            powers[k] = values[k]
        # The third order times the pure powers of each axis gives the higher orders, in turn.
        for k in range(4):
            powers[10 + k] = values[6 + k] * values[1]
            powers[15 + k] = values[6 + k] * values[3]
            powers[21 + k] = values[6 + k] * values[6]
        powers[14], powers[19] = values[9] * values[2], values[9] * values[4]
        powers[20], powers[25] = values[9] * values[5], values[9] * values[7]
        powers[26], powers[27] = values[9] * values[8], values[9] * values[9]
        g = group[m]
        for k in range(PRODUCTS):
            sums[g, k] += w * powers[k]
    out = np.zeros((groups, TERMS, TERMS))
    for g in range(groups):
        for i in range(TERMS):
            for j in range(i + 1):
                xx, yy = (
                    _product(_X_MONOMIAL[i], _X_MONOMIAL[j]),
                    _product(_Y_MONOMIAL[i], _Y_MONOMIAL[j]),
                )
                out[g, i, j] = _X_SIGN[i] * _X_SIGN[j] * sums[g, xx]
                out[g, i, j] += _Y_SIGN[i] * _Y_SIGN[j] * sums[g, yy]
                out[g, j, i] = out[g, i, j]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def solve_leading(normal: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Solve the leading count x count part of a symmetric positive system; zeros elsewhere.

    By Cholesky's decomposition.
    """
    low, out = np.zeros((count, count)), np.zeros(right.size)
    for i in range(count):
        for j in range(i + 1):
            rest = normal[i, j]
            for k in range(j):
                rest -= low[i, k] * low[j, k]
            low[i, j] = np.sqrt(max(rest, 1e-300)) if i == j else rest / low[j, j]
    for i in range(count):
        rest = right[i]
        for k in range(i):
            rest -= low[i, k] * out[k]
        out[i] = rest / low[i, i]
    for from_end in range(count):
        i = count - 1 - from_end
        rest = out[i]
        for k in range(i + 1, count):
            rest -= low[k, i] * out[k]
        out[i] = rest / low[i, i]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _right_sides(
    group: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
    weight: np.ndarray,
    groups: int,
) -> np.ndarray:
    """(groups, 20) right-hand sides: sums of terms^T w displacement over each group's points."""
    sums, out = np.zeros((groups, 2, MONOMIALS)), np.zeros((groups, TERMS))
    values = np.zeros(MONOMIALS)
    for m in range(x.size):
        if weight[m] > 0:
            monomials(x[m], y[m], values)
            g, u, v = group[m], weight[m] * dx[m], weight[m] * dy[m]
            for k in range(MONOMIALS):
                sums[g, 0, k] += values[k] * u
                sums[g, 1, k] += values[k] * v
    for g in range(groups):
        out[g] = term_sums(sums[g])
    return out


def fit_terms(
    x: np.ndarray,
    y: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
    weight: np.ndarray,
    count: int,
    prior: np.ndarray,
) -> np.ndarray:
    """The `count` leading terms (others 0) that best give displacements (dx, dy) at (x, y).

    All in arcsec; weight: 1 / sigma^2 of each point; prior: 1 / sigma^2 of each of the 20 terms.
    """
    group = np.zeros(len(x), np.int64)
    normal = normal_matrices(group, x, y, weight, 1)[0] + np.diag(prior)
    return solve_leading(normal, _right_sides(group, x, y, dx, dy, weight, 1)[0], count)


def cross_validate(
    x: np.ndarray,
    y: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
    weight: np.ndarray,
    fold: np.ndarray,
    counts: tuple[int, ...],
    prior: np.ndarray,
) -> np.ndarray:
    """Chi-square, for each of `counts` terms, of displacements that their fit did not see.

    fold: int64 0..k-1 per point; each fold is predicted by a fit to the others, and the folds are
    summed. Other arguments as in `fit_terms`.
    """
    folds = int(fold.max()) + 1
    normals = normal_matrices(fold, x, y, weight, folds)
    right_sides = _right_sides(fold, x, y, dx, dy, weight, folds)
    squares = np.bincount(fold, weight * (dx**2 + dy**2), folds)
    return _left_out_chi2(normals, right_sides, squares, np.array(counts), prior)


def best_count(chi2: np.ndarray, counts: tuple[int, ...]) -> int:
    """The number of terms that predicts best, by the chi-squares of `cross_validate`.

    Each term costs one unit of chi-square, so that chance does not choose it.
    """
    return counts[int(np.argmin(chi2 + np.array(counts)))]


@njit(cache=True, nogil=True, error_model="numpy")
def _left_out_chi2(
    normals: np.ndarray,
    right_sides: np.ndarray,
    squares: np.ndarray,
    counts: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """Chi-square of each fold about the fit to the others, summed, from their normal equations."""
    out = np.zeros(counts.size)
    for left_out in range(squares.size):
        normal, right = np.diag(prior), np.zeros(TERMS)
        for fold in range(squares.size):
            if fold != left_out:
                normal, right = normal + normals[fold], right + right_sides[fold]
        for n in range(counts.size):
            terms = solve_leading(normal, right, counts[n])
            chi2 = squares[left_out]
            for i in range(TERMS):
                chi2 -= 2.0 * terms[i] * right_sides[left_out, i]
                for j in range(TERMS):
                    chi2 += terms[i] * normals[left_out, i, j] * terms[j]
            out[n] += chi2
    return out
