"""What solvers are made of: Gaussian transitions of a path, first-order steps, and tables from rows or arrays.

Throughout t > s are the ends of a step, and everything is float64 on the host.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Integral, Real
from typing import Literal

import numpy as np

from samplers.table import Row, Table, stack
from sde_lib.sde import SDE

Prediction = Literal["noise", "data"]


def ratio(sde: SDE, t):
    """sigma/alpha, EDM's sigma on any path."""
    return sde.sigma(t) / sde.alpha(t)


def jump(sde: SDE, t: float, s: float) -> tuple[float, float]:
    """The coefficients of x and D in the first-order step from t to s: (sigma_s/sigma_t, alpha_s - alpha_t sigma_s/sigma_t)."""
    r = sde.sigma(s) / sde.sigma(t)
    return r, sde.alpha(s) - sde.alpha(t) * r


def first_order(sde: SDE, t: float, s: float, prediction: Prediction) -> tuple[float, float]:
    """The coefficients of x and of the prediction in DDIM's step."""
    if prediction == "data":
        return jump(sde, t, s)
    alpha = sde.alpha(s)
    return alpha / sde.alpha(t), alpha * (ratio(sde, s) - ratio(sde, t))


@lru_cache
def gauss_legendre(n: int):
    """Nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return 0.5 * (x + 1), 0.5 * w


def lagrange(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Lagrange's polynomials of nodes [n] at x [m], [n, m]."""
    return np.array([np.prod((x[:, None] - np.delete(nodes, j)) / (node - np.delete(nodes, j)), 1) for j, node in enumerate(nodes)])


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^((1-u) z) u^(k-1)/(k-1)! du: phi_1 = (e^z - 1)/z, phi_{k+1} = (phi_k - 1/k!)/z, without their cancellation."""
    u, w = gauss_legendre(64)
    return float(np.sum(w * np.exp((1 - u) * z) * u ** (k - 1)) / math.factorial(k - 1))


def require_decreasing(name: str, times: np.ndarray) -> None:
    """Raise ValueError for times from the data to the prior, along which no solver that draws noise goes."""
    if times[0] < times[-1]:
        raise ValueError(
            f"{name}: times increase, from {times[0]:.4g} to {times[-1]:.4g}: only a deterministic solver encodes, such as "
            "ddim() or heun('sigma'); reverse the grid to sample"
        )


def transition(sde, t: float, s: float) -> tuple[float, float]:
    """Coefficient and variance of the Gaussian p(x_t | x_s), s < t: alpha_t/alpha_s and sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2."""
    alpha_ts = sde.alpha(t) / sde.alpha(s)
    return alpha_ts, sde.sigma(t) ** 2 - (alpha_ts * sde.sigma(s)) ** 2


def posterior(sde, t: float, s: float) -> tuple[float, float, float]:
    """Coefficients of x_t and x_0, and standard deviation, of the Gaussian p(x_s | x_t, x_0), s < t (2006.11239, eq. 7; 2107.00630, eq. 25)."""
    alpha_ts, variance_ts = transition(sde, t, s)
    sigma_s, sigma_t = sde.sigma(s), sde.sigma(t)
    return alpha_ts * (sigma_s / sigma_t) ** 2, sde.alpha(s) * variance_ts / sigma_t**2, np.sqrt(variance_ts) * sigma_s / sigma_t


def of_score(sde, t: float, coefficient: float) -> tuple[float, float]:
    """What `coefficient` times the score at t adds to the coefficients of x and D: score = (alpha D - x)/sigma^2."""
    return -coefficient / sde.sigma(t) ** 2, coefficient * sde.alpha(t) / sde.sigma(t) ** 2


def combine(*terms: tuple[float, dict[int, float]]) -> dict[int, float]:
    """sum of weight x {lag: coefficient}."""
    total = {}
    for weight, coefficients in terms:
        for k, c in coefficients.items():
            total[k] = total.get(k, 0.0) + weight * c
    return total


def strength(eta: float | Callable, t):
    """The noise strength at each time t, a number or [N]: a number, or a function of one time. Raises ValueError if it is negative."""
    value = np.vectorize(eta if callable(eta) else lambda t: eta, otypes=[float])(t)
    if np.any(value < 0):
        raise ValueError(f"eta = {np.min(value)} at t = {np.atleast_1d(t)[np.argmin(value)]:.4g}: expected 0 or more")
    return value[()]


def final_order(order: int, lower_order_final: bool | float, n: int, i: int, short: float = math.inf) -> int:
    """The order of step i of n: lowered towards the end of short runs. lower_order_final: True where n is below `short`, the rule of the solver's
    authors (DPM-Solver: 10; UniPC, DPM-Solver-v3 and diff-sampler: always); or a number, below that many (diffusers' DPM-Solver: 15)."""
    below = short if lower_order_final is True else lower_order_final
    return min(order, n - i) if n < below else order


def in_data(rows: Sequence[Row], sde: SDE) -> list[Row]:
    """Rows that consume the noise as rows that consume the data prediction: eps_e = (y_e - alpha D_e)/sigma, y_e the point of evaluation.

    Raises ValueError where y_e has predictions or noise in it."""
    if any(row.at_p or np.any(row.at_noise) for row in rows):
        raise ValueError("in_data: expected rows that evaluate at a combination of x's alone")
    result = []
    for e, row in enumerate(rows):
        x, p = dict(row.x), {}
        for k, c in row.p.items():
            source = rows[e - k]
            for lag, weight in source.at_x.items():
                x[k + lag] = x.get(k + lag, 0.0) + weight * c / sde.sigma(source.t)
            p[k] = -c * sde.alpha(source.t) / sde.sigma(source.t)
        result.append(replace(row, x=x, p=p))
    return result


def leave_prior(sde: SDE, times: np.ndarray, build: Callable, prediction: Prediction, eta: float | Callable = 0.0) -> Table:
    """The table of the rows build(sde, times).

    From alpha = 0, where lambda and sigma/alpha are infinite and x holds nothing but noise, the first step is DDIM's, exact
    for the mean of x_0, or the ancestral one where `eta` is above 0, and `build` starts after it; rows that consume the noise
    are then rewritten to consume the data. So is the last step of increasing times that end at alpha = 0.
    """
    if sde.alpha(times[-1]) == 0:
        rows = build(sde, times[:-1]) if len(times) > 2 else []
        x, p = jump(sde, times[-2], times[-1])
        return stack([*(rows if prediction == "data" else in_data(rows, sde)), Row(times[-2], {0: x}, {0: p})], "data")
    if sde.alpha(times[0]) > 0:
        return stack(build(sde, times), prediction)
    noisy = strength(eta, times[0]) > 0
    x, p, noise = posterior(sde, times[0], times[1]) if noisy else (*jump(sde, times[0], times[1]), 0.0)
    rows = build(sde, times[1:]) if len(times) > 2 else []
    return stack([Row(times[0], {0: x}, {0: p}, noise), *(rows if prediction == "data" else in_data(rows, sde))], "data")


def one_step_rows(t, x, p, noise):
    """The table of x' = x x + p D + noise xi, from arrays over the steps."""
    return stack([Row(*row) for row in zip(t, ({0: c} for c in x), ({0: c} for c in p), noise)], "data")


def stepwise(step, sde, times):
    """The table of (x, p, noise) = step(t, s); from alpha = 0, where f and g are infinite, of the ancestral step, exact there since x_T is
    independent of the data."""
    require_decreasing("the reverse SDE", times)
    t, s = times[:-1], times[1:]
    start = np.where(sde.alpha(t) == 0, 0.5 * (t + s), t)  # keeps `step` finite where its result is not used
    rows = [np.where(sde.alpha(t) == 0, a, b) for a, b in zip(posterior(sde, t, s), step(start, s))]
    return one_step_rows(t, *rows)


# --- checks of options: each solver makes them of its own, when it is made ----------------------------------------------------------


def check(name: str, **options) -> None:
    """Raise ValueError for an option, given as (value, allowed words or whole numbers), that is not allowed."""
    for option, (value, allowed) in options.items():
        kind = str if isinstance(allowed[0], str) else Integral
        if isinstance(value, bool) or not isinstance(value, kind) or value not in allowed:
            raise ValueError(f"{name}: {option} {value!r}: expected {' or '.join(map(str, allowed))}")


def check_whole(name: str, least: int, **options) -> None:
    """Raise ValueError for an option that is not a whole number of at least `least`."""
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}: {option} = {value!r}: expected a whole number of at least {least}")


def check_number(name: str, least: float = -math.inf, above: float = -math.inf, below: float | None = None, **options) -> None:
    """Raise ValueError for an option that is not a number of at least `least`, above `above` and, if given, below `below`."""
    bounds = [text for text, bound in ((f"of at least {least:g}", least), (f"above {above:g}", above)) if bound > -math.inf]
    bounds += [] if below is None else ["finite" if below == math.inf else f"below {below:g}"]
    for option, value in options.items():
        real = isinstance(value, Real) and not isinstance(value, bool)
        if not real or not (value >= least and (value > above or above == -math.inf) and (below is None or value < below)):
            raise ValueError(f"{name}: {option} = {value!r}: expected a number {' and '.join(bounds)}")


def check_flag(name: str, **options) -> None:
    """Raise ValueError for an option that is neither True nor False."""
    for option, value in options.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name}: {option} = {value!r}: expected True or False")


def check_strength(name: str, eta) -> None:
    """Raise ValueError for an `eta` that is neither a function of time nor a finite number of at least 0."""
    if not callable(eta):
        check_number(name, least=0.0, below=math.inf, eta=eta)


def check_final(name: str, lower_order_final) -> None:
    """Raise ValueError for a `lower_order_final` that `final_order` does not know."""
    if not isinstance(lower_order_final, (bool, np.bool_)):
        check_number(name, least=0, lower_order_final=lower_order_final)
