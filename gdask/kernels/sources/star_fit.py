"""Fits of an array's star image to its stars, one at a time on what all others leave.

The star image is a table in q = a dx^2 + 2 b dx dy + c dy^2, the *form* (a, b, c) being that of the star's place on the
array: (1, 0, 1) is the round mean image, and sqrt(a c - b^2) keeps its light.
"""

from __future__ import annotations

import numba
import numpy as np

#: In units of the FWHM: radius of the fit.
FIT = 2.5
#: The move (pixels) below which a star is left alone after the second sweep.
SETTLED = 0.003


@numba.njit(cache=True, nogil=True, error_model="numpy")
def solve(a: np.ndarray, b: np.ndarray) -> tuple[bool, np.ndarray]:
    """Cholesky in place of a symmetric positive matrix; returns the solution and leaves the inverse's diagonal in b."""
    n = b.size
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for k in range(j):
                s -= a[i, k] * a[j, k]
            if i == j:
                if not s > 1e-12 * abs(a[i, i]):
                    return False, b
                a[i, i] = np.sqrt(s)
            else:
                a[i, j] = s / a[j, j]
    inverse = np.zeros((n, n))
    for c in range(n):
        for i in range(c, n):
            s = 1.0 if i == c else 0.0
            for k in range(c, i):
                s -= a[i, k] * inverse[k, c]
            inverse[i, c] = s / a[i, i]
    half, out = np.zeros(n), np.zeros(n)
    for i in range(n):
        for k in range(i + 1):
            half[i] += inverse[i, k] * b[k]
    for i in range(n):
        b[i] = 0.0
        for k in range(i, n):
            out[i] += inverse[k, i] * half[k]
            b[i] += inverse[k, i] ** 2
    return True, out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def light(
    dx: float, dy: float, form: np.ndarray, table: np.ndarray, step: float
) -> tuple[float, float]:
    """Share of a star's light in the pixel at (dx, dy) from it, and -2 x its derivative by q; 0 beyond the table."""
    u = (form[0] * dx * dx + 2.0 * form[1] * dx * dy + form[2] * dy * dy) / step
    n = int(u)
    if n + 1 >= table.shape[1]:
        return 0.0, 0.0
    root, t = np.sqrt(form[0] * form[2] - form[1] * form[1]), u - n
    value = table[0, n] + t * (table[0, n + 1] - table[0, n])
    return root * value, root * (table[1, n] + t * (table[1, n + 1] - table[1, n]))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def subtract(
    left: np.ndarray,
    x: float,
    y: float,
    flux: float,
    form: np.ndarray,
    table: np.ndarray,
    step: float,
    reach: float,
) -> None:
    """Take a star out of `left`, in place, to `reach` pixels."""
    ny, nx = left.shape
    a, b, c = form[0] / step, 2.0 * form[1] / step, form[2] / step
    f = flux * np.sqrt(form[0] * form[2] - form[1] * form[1])
    for j in range(max(int(y - reach), 0), min(int(y + reach) + 2, ny)):
        dy = j - y
        for i in range(max(int(x - reach), 0), min(int(x + reach) + 2, nx)):
            dx = i - x
            u = a * dx * dx + b * dx * dy + c * dy * dy
            n = int(u)
            if n + 1 < table.shape[1]:
                left[j, i] -= f * (table[0, n] + (u - n) * (table[0, n + 1] - table[0, n]))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def take_out(
    left: np.ndarray,
    p: np.ndarray,
    forms: np.ndarray,
    table: np.ndarray,
    step: float,
    reach: np.ndarray,
) -> None:
    """Take all stars out of `left`, in place."""
    for k in range(p.shape[0]):
        subtract(left, p[k, 0], p[k, 1], p[k, 2], forms[k], table, step, reach[k])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fit_one(
    left: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    p: np.ndarray,
    e: np.ndarray,
    form: np.ndarray,
    table: np.ndarray,
    step: float,
    radius: float,
    longest_step: float,
    steps: int,
) -> bool:
    """Gauss-Newton for (x, y, flux, sky, slope in x, slope in y) in p, errors to e; the slopes take up a halo.
    Returns whether it worked."""
    ny, nx = left.shape
    normal, right, g = np.zeros((6, 6)), np.zeros(6), np.zeros(6)
    ok = False
    for _ in range(steps):
        for a in range(6):
            right[a] = 0.0
            for b in range(6):
                normal[a, b] = 0.0
        for j in range(max(int(p[1] - radius), 0), min(int(p[1] + radius) + 2, ny)):
            for i in range(max(int(p[0] - radius), 0), min(int(p[0] + radius) + 2, nx)):
                dx, dy = i - p[0], j - p[1]
                if bad[j, i] or not variance[j, i] > 0 or dx * dx + dy * dy > radius * radius:
                    continue
                share, slope = light(dx, dy, form, table, step)
                slope *= p[2]
                g[0], g[1], g[2] = (
                    slope * (form[0] * dx + form[1] * dy),
                    slope * (form[1] * dx + form[2] * dy),
                    share,
                )
                g[3], g[4], g[5] = 1.0, dx / radius, dy / radius
                w = 1.0 / variance[j, i]
                r = left[j, i] - p[2] * share - p[3] - p[4] * g[4] - p[5] * g[5]
                for a in range(6):
                    right[a] += w * g[a] * r
                    for b in range(a + 1):
                        normal[a, b] += w * g[a] * g[b]
        ok, change = solve(normal, right)
        if not ok:
            return False
        longest = max(abs(change[0]), abs(change[1]))
        scale = min(1.0, longest_step / longest) if longest > 0 else 1.0
        for a in range(6):
            p[a] += scale * change[a] if a < 2 else change[a]
            e[a] = np.sqrt(right[a])
        if longest < 0.3 * SETTLED:
            break
    return ok


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fit_all(
    left: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    order: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    p: np.ndarray,
    e: np.ndarray,
    forms: np.ndarray,
    table: np.ndarray,
    step: float,
    fwhm: float,
    reach: np.ndarray,
    sweeps: int,
    taken: bool,
) -> np.ndarray:
    """From bright to faint, fit each star on what is left when all others are subtracted; again for all, then for those
    that still move (close pairs, which take turns to converge).

    left: the pixels; all stars are taken out in place (taken: they are already). x, y: detections, from which a fit may
    move by one FWHM. p, e: parameters and errors, improved in place. Returns which fits failed.
    """
    failed = np.zeros(x.size, np.bool_)
    one, error, steps = np.zeros(6), np.zeros(6), 5 if taken else 3
    moved = np.ones(x.size)
    for sweep in range(sweeps):
        for k in order:
            if sweep > 1 and not moved[k] > SETTLED:
                continue
            if sweep > 0 or taken:
                subtract(left, p[k, 0], p[k, 1], -p[k, 2], forms[k], table, step, reach[k])
            for a in range(6):
                one[a] = p[k, a]
            ok = fit_one(
                left,
                variance,
                bad,
                one,
                error,
                forms[k],
                table,
                step,
                FIT * fwhm,
                0.25 * fwhm,
                steps,
            )
            failed[k] = not (
                ok and one[2] > 0 and (one[0] - x[k]) ** 2 + (one[1] - y[k]) ** 2 < fwhm * fwhm
            )
            moved[k] = 0.0
            if not failed[k]:
                moved[k] = np.hypot(one[0] - p[k, 0], one[1] - p[k, 1])
                for a in range(6):
                    p[k, a] = one[a]
                    e[k, a] = error[a]
            subtract(left, p[k, 0], p[k, 1], p[k, 2], forms[k], table, step, reach[k])
    return failed


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fit_shapes(
    left: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    p: np.ndarray,
    forms: np.ndarray,
    table: np.ndarray,
    step: float,
    radius: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The form that fits each star best: (n, 3), and its errors; NaN where none does.

    left: residual pixels; each star is put back before its fit. Position, flux and sky are fitted with it.
    """
    ny, nx = left.shape
    n = p.shape[0]
    out, errors = np.full((n, 3), np.nan), np.full((n, 3), np.nan)
    normal, right, g, v = np.zeros((7, 7)), np.zeros(7), np.zeros(7), np.zeros(7)
    for k in range(n):
        v[:4], v[4:] = p[k, :4], forms[k]
        v[3] = p[k, 3]
        ok = False
        for _ in range(6):
            normal[:], right[:] = 0.0, 0.0
            root2 = v[4] * v[6] - v[5] * v[5]
            if not root2 > 0.05:
                ok = False
                break
            for j in range(max(int(p[k, 1] - radius), 0), min(int(p[k, 1] + radius) + 2, ny)):
                for i in range(max(int(p[k, 0] - radius), 0), min(int(p[k, 0] + radius) + 2, nx)):
                    rx, ry = i - p[k, 0], j - p[k, 1]
                    if bad[j, i] or not variance[j, i] > 0 or rx * rx + ry * ry > radius * radius:
                        continue
                    dx, dy = i - v[0], j - v[1]
                    share, slope = light(dx, dy, v[4:], table, step)
                    own, _ = light(rx, ry, forms[k], table, step)
                    slope *= v[2]
                    g[0], g[1] = slope * (v[4] * dx + v[5] * dy), slope * (v[5] * dx + v[6] * dy)
                    g[2], g[3] = share, 1.0
                    g[4] = -0.5 * slope * dx * dx + v[2] * share * 0.5 * v[6] / root2
                    g[5] = -slope * dx * dy - v[2] * share * v[5] / root2
                    g[6] = -0.5 * slope * dy * dy + v[2] * share * 0.5 * v[4] / root2
                    w = 1.0 / variance[j, i]
                    r = left[j, i] + p[k, 2] * own - v[2] * share - v[3]
                    for a in range(7):
                        right[a] += w * g[a] * r
                        for b in range(a + 1):
                            normal[a, b] += w * g[a] * g[b]
            ok, change = solve(normal, right)
            if not ok:
                break
            largest = max(abs(change[4]), abs(change[5]), abs(change[6]))
            damp = min(1.0, 0.3 / largest) if largest > 0 else 1.0
            for a in range(7):
                v[a] += damp * change[a]
            if largest < 1e-4:
                break
        if ok:
            out[k] = v[4:]
            errors[k] = np.sqrt(right[4:])
    return out, errors
