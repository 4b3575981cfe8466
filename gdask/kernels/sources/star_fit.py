"""Fit an array's star image to its stars, one at a time on what all others leave.

The star image is a `profile`: a table in q = a dx^2 + 2 b dx dy + c dy^2 with steps of
`profile_step`. The *form* (a, b, c) is that of the star's place on the array: (1, 0, 1) is the
round mean image, and the factor sqrt(a c - b^2) keeps its light. Row 0 of the profile is the share
of the star's light in a pixel, row 1 is -2 x its derivative by q.

Stars are rows of `params`: x, y (0-based pixels), flux, sky, and the slopes of the sky in x and y.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gdask.kernels.compiled import njit

#: Radius of the fit, in FWHM.
FIT_RADIUS_FWHM = 2.5
#: A star that moves by less than this is left alone after the second sweep.
SETTLED_MOVE_PIXELS = 0.003


@njit(cache=True, nogil=True, error_model="numpy")
def solve_cholesky(a: np.ndarray, b: np.ndarray, x: np.ndarray, inverse: np.ndarray) -> bool:
    """Solve a x = b for a symmetric positive matrix; returns whether Cholesky's method worked.

    Only the lower triangle of a is read; a is overwritten, x set, and b then holds the diagonal of
    the inverse of a. inverse: work of the shape of a.
    """
    n = b.size
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for k in range(j):
                s -= a[i, k] * a[j, k]
            if i == j:
                if not s > 1e-12 * abs(a[i, i]):
                    return False
                a[i, i] = np.sqrt(s)
            else:
                a[i, j] = s / a[j, j]
    for c in range(n):
        for i in range(c, n):
            s = 1.0 if i == c else 0.0
            for k in range(c, i):
                s -= a[i, k] * inverse[k, c]
            inverse[i, c] = s / a[i, i]
    for i in range(n - 1, -1, -1):
        s = 0.0
        for k in range(i + 1):
            s += inverse[i, k] * b[k]
        b[i] = s
    for i in range(n):
        s, square = 0.0, 0.0
        for k in range(i, n):
            s += inverse[k, i] * b[k]
            square += inverse[k, i] ** 2
        x[i], a[i, i] = s, square
    for i in range(n):
        b[i] = a[i, i]
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def star_light(
    dx: float, dy: float, form: np.ndarray, profile: np.ndarray, profile_step: float
) -> tuple[float, float]:
    """Share of a star's light in the pixel at (dx, dy) from it, and -2 x its derivative by q.

    Both are 0 beyond the profile.
    """
    u = (form[0] * dx * dx + 2.0 * form[1] * dx * dy + form[2] * dy * dy) / profile_step
    n = int(u)
    if n + 1 >= profile.shape[1]:
        return 0.0, 0.0
    root, t = np.sqrt(form[0] * form[2] - form[1] * form[1]), u - n
    value = profile[0, n] + t * (profile[0, n + 1] - profile[0, n])
    return root * value, root * (profile[1, n] + t * (profile[1, n + 1] - profile[1, n]))


@njit(cache=True, nogil=True, error_model="numpy")
def _padded(profile: np.ndarray) -> np.ndarray:
    """Give the profile with zeros behind it: its entry `size + 1`, which is read for all beyond."""
    out = np.zeros((2, profile.shape[1] + 2))
    for k in range(profile.shape[1]):
        out[0, k], out[1, k] = profile[0, k], profile[1, k]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _subtract(
    residual: np.ndarray,
    x: float,
    y: float,
    flux: float,
    form: np.ndarray,
    table: np.ndarray,
    profile_step: float,
    radius: float,
    work: tuple[Any, ...],
) -> None:
    """Subtract a star from `residual`, in place, out to `radius` pixels.

    table: of `_padded`. work: index (int32) and three more arrays, as long as a row of the star.
    The look-up stands alone: the compiler makes vector code of the loops before and after it.
    """
    ny, nx = residual.shape
    index, part, low, high = work
    a, b, c = form[0] / profile_step, 2.0 * form[1] / profile_step, form[2] / profile_step
    f = flux * np.sqrt(form[0] * form[2] - form[1] * form[1])
    last = table.shape[1] - 3
    i0, values = max(int(x - radius), 0), table[0]
    for j in range(max(int(y - radius), 0), min(int(y + radius) + 2, ny)):
        dy = j - y
        length = min(int(x + radius) + 2, nx) - i0
        for i in range(length):
            dx = i0 + i - x
            u = a * dx * dx + b * dx * dy + c * dy * dy
            u = u if u < last else last + 1.0
            k = np.int32(u)
            index[i], part[i] = k, u - k
        for i in range(length):
            n = np.uint64(index[i])
            low[i], high[i] = values[n], values[n + np.uint64(1)]
        for i in range(length):
            light = f * (low[i] + part[i] * (high[i] - low[i]))
            residual[np.uint64(j), np.uint64(i0 + i)] -= light


@njit(cache=True, nogil=True, error_model="numpy")
def _gradients(
    residual: np.ndarray,
    weight: np.ndarray,
    j0: int,
    i0: int,
    star: np.ndarray,
    form: np.ndarray,
    table: np.ndarray,
    profile_step: float,
    radius: float,
    index: np.ndarray,
    columns: tuple[Any, ...],
) -> int:
    """Set the columns for the pixels within `radius`; returns how many they are.

    weight: of the pixels from (j0, i0) on, 0 for bad ones. The columns are the derivatives of the
    model by x, y, flux, and the slopes of the sky, what the model leaves, and the weight.
    """
    ny, nx = residual.shape
    gx, gy, share, u, v, rest, w = columns
    x, y, n, radius2 = star[0], star[1], 0, radius * radius
    for j in range(j0, min(int(y + radius) + 2, ny)):
        dy = j - y
        if dy * dy > radius2:
            continue
        half = np.sqrt(radius2 - dy * dy)
        i1, i2 = max(int(x - half), i0), min(int(x + half) + 2, nx)
        while i1 < i2 and (i1 - x) * (i1 - x) + dy * dy > radius2:
            i1 += 1
        while i1 < i2 and (i2 - 1 - x) * (i2 - 1 - x) + dy * dy > radius2:
            i2 -= 1
        for i in range(max(i2 - i1, 0)):
            gx[n + i], gy[n + i] = i1 + i - x, dy
            w[n + i] = weight[np.uint64(j - j0), np.uint64(i1 - i0 + i)]
        for i in range(max(i2 - i1, 0)):
            value = residual[np.uint64(j), np.uint64(i1 + i)]
            rest[n + i] = value if w[n + i] > 0 else 0.0
        n += max(i2 - i1, 0)
    a, b, c, last, two = form[0], form[1], form[2], table.shape[1] - 3, 2.0 * form[1]
    for k in range(n):
        dx, dy = gx[k], gy[k]
        q = (a * dx * dx + two * dx * dy + c * dy * dy) / profile_step
        q = q if q < last else last + 1.0
        m = np.int32(q)
        index[k], u[k] = m, q - m
    root, flux, sky, sky_x, sky_y = np.sqrt(a * c - b * b), star[2], star[3], star[4], star[5]
    for k in range(n):
        entry, t = np.uint64(index[k]), u[k]
        low, slope = table[0, entry], table[1, entry]
        share[k] = low + t * (table[0, entry + np.uint64(1)] - low)
        v[k] = slope + t * (table[1, entry + np.uint64(1)] - slope)
    for k in range(n):
        dx, dy, light, slope = gx[k], gy[k], root * share[k], root * v[k] * flux
        du, dv = dx / radius, dy / radius
        gx[k], gy[k] = slope * (a * dx + b * dy), slope * (b * dx + c * dy)
        share[k], u[k], v[k] = light, du, dv
        rest[k] = rest[k] - flux * light - sky - sky_x * du - sky_y * dv
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def _normal_equations(
    columns: tuple[Any, ...], n: int, normal: np.ndarray, right: np.ndarray
) -> None:
    """Set the normal matrix (lower triangle) and right side from n rows of `_gradients`.

    Each sum is in the order of the pixels.
    """
    gx, gy, share, slope_x, slope_y, rest, weight = columns
    a00, a10, a11, a20, a21, a22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    b0, b1, b2 = 0.0, 0.0, 0.0
    for k in range(n):
        g0, g1, g2, r, w = gx[k], gy[k], share[k], rest[k], weight[k]
        w0, w1, w2 = w * g0, w * g1, w * g2
        a00, a10, a11 = a00 + w0 * g0, a10 + w1 * g0, a11 + w1 * g1
        a20, a21, a22 = a20 + w2 * g0, a21 + w2 * g1, a22 + w2 * g2
        b0, b1, b2 = b0 + w0 * r, b1 + w1 * r, b2 + w2 * r
    normal[0, 0], normal[1, 0], normal[1, 1] = a00, a10, a11
    normal[2, 0], normal[2, 1], normal[2, 2] = a20, a21, a22
    right[0], right[1], right[2] = b0, b1, b2
    a30, a31, a32, a33, a40, a41, a42, a43 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    b0, b1 = 0.0, 0.0
    for k in range(n):
        g0, g1, g2, w = gx[k], gy[k], share[k], weight[k]
        w4 = w * slope_x[k]
        a30, a31, a32, a33 = a30 + w * g0, a31 + w * g1, a32 + w * g2, a33 + w
        a40, a41, a42, a43 = a40 + w4 * g0, a41 + w4 * g1, a42 + w4 * g2, a43 + w4
        b0, b1 = b0 + w * rest[k], b1 + w4 * rest[k]
    normal[3, 0], normal[3, 1], normal[3, 2], normal[3, 3] = a30, a31, a32, a33
    normal[4, 0], normal[4, 1], normal[4, 2], normal[4, 3] = a40, a41, a42, a43
    right[3], right[4] = b0, b1
    a44, a50, a51, a52, a53, a54, a55, b0 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(n):
        u, v, w = slope_x[k], slope_y[k], weight[k]
        w5 = w * v
        a44, a54, a55, b0 = a44 + w * u * u, a54 + w5 * u, a55 + w5 * v, b0 + w5 * rest[k]
        a50, a51, a52 = a50 + w5 * gx[k], a51 + w5 * gy[k], a52 + w5 * share[k]
        a53 += w5
    normal[4, 4], normal[5, 0], normal[5, 1], normal[5, 2] = a44, a50, a51, a52
    normal[5, 3], normal[5, 4], normal[5, 5], right[5] = a53, a54, a55, b0


@njit(cache=True, nogil=True, error_model="numpy")
def fit_star(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    star: np.ndarray,
    errors: np.ndarray,
    form: np.ndarray,
    table: np.ndarray,
    profile_step: float,
    radius: float,
    longest_move: float,
    steps: int,
    work: tuple[Any, ...],
) -> bool:
    """Fit one star by Gauss and Newton's method; returns whether it worked.

    star: x, y, flux, sky, slope in x and in y, improved in place; the slopes take up the light of
    a halo. errors: theirs, set in place. radius: that of the fit, and longest_move: the most by
    which the position moves in one of the `steps`, both in pixels. work: see `fit_all_stars`.
    """
    ny, nx = residual.shape
    weight, index, columns, normal, inverse, right, change = work
    ok, j0, i0 = False, -1, -1
    for _ in range(steps):
        j, i = max(int(star[1] - radius), 0), max(int(star[0] - radius), 0)
        if j != j0 or i != i0:
            j0, i0 = j, i
            for j in range(min(weight.shape[0], ny - j0)):
                for i in range(min(weight.shape[1], nx - i0)):
                    # Unsigned places have no test for counting from the end: vector code.
                    v = variance[np.uint64(j0 + j), np.uint64(i0 + i)]
                    good = (v > 0) & (not bad[np.uint64(j0 + j), np.uint64(i0 + i)])
                    weight[j, i] = 1.0 / v if good else 0.0
        n = _gradients(
            residual, weight, j0, i0, star, form, table, profile_step, radius, index, columns
        )
        _normal_equations(columns, n, normal, right)
        ok = solve_cholesky(normal, right, change, inverse)
        if not ok:
            return False
        move = max(abs(change[0]), abs(change[1]))
        scale = min(1.0, longest_move / move) if move > 0 else 1.0
        for a in range(6):
            star[a] += scale * change[a] if a < 2 else change[a]
            errors[a] = np.sqrt(right[a])
        if move < 0.3 * SETTLED_MOVE_PIXELS:
            break
    return ok


@njit(cache=True, nogil=True, error_model="numpy")
def fit_all_stars(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    order: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    params: np.ndarray,
    errors: np.ndarray,
    forms: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    fwhm: float,
    radii: np.ndarray,
    sweeps: int,
    subtracted: bool,
) -> np.ndarray:
    """Fit each star on what is left when all others are subtracted; returns which fits failed.

    The first two sweeps fit all stars, in the given order (bright to faint); further ones fit those
    that still move: close pairs, which take turns to converge. residual: the pixels, from which all
    stars are subtracted in place; subtracted: all of them before the first fit, not each after its
    own. x, y: detections, from which a fit may move by one FWHM. params, errors: improved in place.
    radii: to which stars are subtracted.
    """
    failed = np.zeros(x.size, np.bool_)
    star, error, steps = np.zeros(6), np.zeros(6), 5 if subtracted else 3
    moved = np.ones(x.size)
    side, width = 2 * int(FIT_RADIUS_FWHM * fwhm) + 4, residual.shape[1]
    area, table = side * side, _padded(profile)
    columns = (
        np.zeros(area),
        np.zeros(area),
        np.zeros(area),
        np.zeros(area),
        np.zeros(area),
        np.zeros(area),
        np.zeros(area),
    )
    row = np.empty(width, np.int32), np.empty(width), np.empty(width), np.empty(width)
    matrices = np.zeros((6, 6)), np.zeros((6, 6)), np.zeros(6), np.zeros(6)
    work = np.zeros((side, side)), np.zeros(area, np.int32), columns, *matrices
    for k in range(x.size if subtracted else 0):
        x0, y0, flux = params[k, 0], params[k, 1], params[k, 2]
        _subtract(residual, x0, y0, flux, forms[k], table, profile_step, radii[k], row)
    for sweep in range(sweeps):
        for k in order:
            if sweep > 1 and not moved[k] > SETTLED_MOVE_PIXELS:
                continue
            form = forms[k]
            if sweep > 0 or subtracted:
                x0, y0, flux = params[k, 0], params[k, 1], -params[k, 2]
                _subtract(residual, x0, y0, flux, form, table, profile_step, radii[k], row)
            for a in range(6):
                star[a] = params[k, a]
            ok = fit_star(
                residual,
                variance,
                bad,
                star,
                error,
                form,
                table,
                profile_step,
                FIT_RADIUS_FWHM * fwhm,
                0.25 * fwhm,
                steps,
                work,
            )
            distance2 = (star[0] - x[k]) ** 2 + (star[1] - y[k]) ** 2
            failed[k] = not (ok and star[2] > 0 and distance2 < fwhm * fwhm)
            moved[k] = 0.0
            if not failed[k]:
                moved[k] = np.hypot(star[0] - params[k, 0], star[1] - params[k, 1])
                for a in range(6):
                    params[k, a] = star[a]
                    errors[k, a] = error[a]
            x0, y0, flux = params[k, 0], params[k, 1], params[k, 2]
            _subtract(residual, x0, y0, flux, form, table, profile_step, radii[k], row)
    return failed


@njit(cache=True, nogil=True, error_model="numpy")
def fit_forms(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    params: np.ndarray,
    forms: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    radius: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the form of each star; returns the forms (n, 3) and their errors, NaN where a fit fails.

    residual: the pixels without the stars; each star is put back before its fit. Position, flux and
    sky are fitted with the form, within `radius` pixels.
    """
    ny, nx = residual.shape
    n = params.shape[0]
    out, errors = np.empty((n, 3)), np.empty((n, 3))
    normal, right, g, v = np.zeros((7, 7)), np.zeros(7), np.zeros(7), np.zeros(7)
    change, inverse = np.zeros(7), np.zeros((7, 7))
    for k in range(n):
        x, y, flux = params[k, 0], params[k, 1], params[k, 2]
        for a in range(7):
            v[a] = params[k, a] if a < 4 else forms[k, a - 4]
        ok = False
        for _ in range(6):
            for a in range(7):
                right[a] = 0.0
                for b in range(a + 1):
                    normal[a, b] = 0.0
            root2 = v[4] * v[6] - v[5] * v[5]
            if not root2 > 0.05:
                ok = False
                break
            for j in range(max(int(y - radius), 0), min(int(y + radius) + 2, ny)):
                for i in range(max(int(x - radius), 0), min(int(x + radius) + 2, nx)):
                    rx, ry = i - x, j - y
                    if bad[j, i] or not variance[j, i] > 0 or rx * rx + ry * ry > radius * radius:
                        continue
                    dx, dy = i - v[0], j - v[1]
                    share, slope = star_light(dx, dy, v[4:], profile, profile_step)
                    subtracted, _ = star_light(rx, ry, forms[k], profile, profile_step)
                    slope *= v[2]
                    g[0], g[1] = slope * (v[4] * dx + v[5] * dy), slope * (v[5] * dx + v[6] * dy)
                    g[2], g[3] = share, 1.0
                    g[4] = -0.5 * slope * dx * dx + v[2] * share * 0.5 * v[6] / root2
                    g[5] = -slope * dx * dy - v[2] * share * v[5] / root2
                    g[6] = -0.5 * slope * dy * dy + v[2] * share * 0.5 * v[4] / root2
                    w = 1.0 / variance[j, i]
                    r = residual[j, i] + flux * subtracted - v[2] * share - v[3]
                    for a in range(7):
                        right[a] += w * g[a] * r
                        for b in range(a + 1):
                            normal[a, b] += w * g[a] * g[b]
            ok = solve_cholesky(normal, right, change, inverse)
            if not ok:
                break
            largest = max(abs(change[4]), abs(change[5]), abs(change[6]))
            damping = min(1.0, 0.3 / largest) if largest > 0 else 1.0
            for a in range(7):
                v[a] += damping * change[a]
            if largest < 1e-4:
                break
        for a in range(3):
            out[k, a] = v[4 + a] if ok else np.nan
            errors[k, a] = np.sqrt(right[4 + a]) if ok else np.nan
    return out, errors
