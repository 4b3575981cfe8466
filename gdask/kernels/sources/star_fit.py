"""Fit an array's star image to its stars, one at a time on what all others leave.

The star image is a `profile`: a table in q = a dx^2 + 2 b dx dy + c dy^2 with steps of
`profile_step`. The *form* (a, b, c) is that of the star's place on the array: (1, 0, 1) is the
round mean image, and the factor sqrt(a c - b^2) keeps its light. Row 0 of the profile is the share
of the star's light in a pixel, row 1 is -2 x its derivative by q.

Stars are rows of `params`: x, y (0-based pixels), flux, sky, and the slopes of the sky in x and y.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.compiled import njit

#: Radius of the fit, in FWHM.
FIT_RADIUS_FWHM = 2.5
#: A star that moves by less than this is left alone after the second sweep.
SETTLED_MOVE_PIXELS = 0.003


@njit(cache=True, nogil=True, error_model="numpy")
def solve_cholesky(a: np.ndarray, b: np.ndarray) -> tuple[bool, np.ndarray]:
    """Solve a x = b for a symmetric positive matrix by Cholesky's method, in place.

    Returns whether it worked, and the solution; b then holds the diagonal of the inverse of a.
    """
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
def subtract_star(
    residual: np.ndarray,
    x: float,
    y: float,
    flux: float,
    form: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    radius: float,
) -> None:
    """Subtract a star from `residual`, in place, out to `radius` pixels."""
    ny, nx = residual.shape
    a, b, c = form[0] / profile_step, 2.0 * form[1] / profile_step, form[2] / profile_step
    f = flux * np.sqrt(form[0] * form[2] - form[1] * form[1])
    for j in range(max(int(y - radius), 0), min(int(y + radius) + 2, ny)):
        dy = j - y
        for i in range(max(int(x - radius), 0), min(int(x + radius) + 2, nx)):
            dx = i - x
            u = a * dx * dx + b * dx * dy + c * dy * dy
            n = int(u)
            if n + 1 < profile.shape[1]:
                value = profile[0, n] + (u - n) * (profile[0, n + 1] - profile[0, n])
                residual[j, i] -= f * value


@njit(cache=True, nogil=True, error_model="numpy")
def subtract_all_stars(
    residual: np.ndarray,
    params: np.ndarray,
    forms: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    radii: np.ndarray,
) -> None:
    """Subtract all stars from `residual`, in place, each out to its radius (pixels)."""
    for k in range(params.shape[0]):
        x, y, flux = params[k, 0], params[k, 1], params[k, 2]
        subtract_star(residual, x, y, flux, forms[k], profile, profile_step, radii[k])


@njit(cache=True, nogil=True, error_model="numpy")
def fit_star(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    star: np.ndarray,
    errors: np.ndarray,
    form: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    radius: float,
    longest_move: float,
    steps: int,
) -> bool:
    """Fit one star by Gauss and Newton's method; returns whether it worked.

    star: x, y, flux, sky, slope in x and in y, improved in place; the slopes take up the light of
    a halo. errors: theirs, set in place. radius: that of the fit, and longest_move: the most by
    which the position moves in one of the `steps`, both in pixels.
    """
    ny, nx = residual.shape
    normal, right, g = np.zeros((6, 6)), np.zeros(6), np.zeros(6)
    ok = False
    for _ in range(steps):
        for a in range(6):
            right[a] = 0.0
            for b in range(6):
                normal[a, b] = 0.0
        for j in range(max(int(star[1] - radius), 0), min(int(star[1] + radius) + 2, ny)):
            for i in range(max(int(star[0] - radius), 0), min(int(star[0] + radius) + 2, nx)):
                dx, dy = i - star[0], j - star[1]
                if bad[j, i] or not variance[j, i] > 0 or dx * dx + dy * dy > radius * radius:
                    continue
                share, slope = star_light(dx, dy, form, profile, profile_step)
                slope *= star[2]
                g[0] = slope * (form[0] * dx + form[1] * dy)
                g[1] = slope * (form[1] * dx + form[2] * dy)
                g[2], g[3], g[4], g[5] = share, 1.0, dx / radius, dy / radius
                w = 1.0 / variance[j, i]
                r = residual[j, i] - star[2] * share - star[3] - star[4] * g[4] - star[5] * g[5]
                for a in range(6):
                    right[a] += w * g[a] * r
                    for b in range(a + 1):
                        normal[a, b] += w * g[a] * g[b]
        ok, change = solve_cholesky(normal, right)
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
    stars are subtracted in place (subtracted: they are already). x, y: detections, from which a fit
    may move by one FWHM. params, errors: improved in place. radii: to which stars are subtracted.
    """
    failed = np.zeros(x.size, np.bool_)
    star, error, steps = np.zeros(6), np.zeros(6), 5 if subtracted else 3
    moved = np.ones(x.size)
    for sweep in range(sweeps):
        for k in order:
            if sweep > 1 and not moved[k] > SETTLED_MOVE_PIXELS:
                continue
            form = forms[k]
            if sweep > 0 or subtracted:
                x0, y0, flux = params[k, 0], params[k, 1], -params[k, 2]
                subtract_star(residual, x0, y0, flux, form, profile, profile_step, radii[k])
            for a in range(6):
                star[a] = params[k, a]
            ok = fit_star(
                residual,
                variance,
                bad,
                star,
                error,
                form,
                profile,
                profile_step,
                FIT_RADIUS_FWHM * fwhm,
                0.25 * fwhm,
                steps,
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
            subtract_star(residual, x0, y0, flux, form, profile, profile_step, radii[k])
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
    out, errors = np.full((n, 3), np.nan), np.full((n, 3), np.nan)
    normal, right, g, v = np.zeros((7, 7)), np.zeros(7), np.zeros(7), np.zeros(7)
    for k in range(n):
        x, y, flux = params[k, 0], params[k, 1], params[k, 2]
        v[:4], v[4:] = params[k, :4], forms[k]
        ok = False
        for _ in range(6):
            normal[:], right[:] = 0.0, 0.0
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
            ok, change = solve_cholesky(normal, right)
            if not ok:
                break
            largest = max(abs(change[4]), abs(change[5]), abs(change[6]))
            damping = min(1.0, 0.3 / largest) if largest > 0 else 1.0
            for a in range(7):
                v[a] += damping * change[a]
            if largest < 1e-4:
                break
        if ok:
            out[k] = v[4:]
            errors[k] = np.sqrt(right[4:])
    return out, errors
