r"""Stochastic solvers of two evaluations a step, after k-diffusion (Crowson), on any path.

With y = x/alpha and s = sigma/alpha, an ancestral step from s to s' goes down to s_down without noise and then up again,

    up = min(s', eta s' sqrt(1 - (s'/s)^2)),    down^2 = s'^2 - up^2,    y' = y(s_down) + up xi.

| solver                     | down to s_down by                              | middle of the step          | noise            |
|----------------------------|------------------------------------------------|-----------------------------|------------------|
| dpm_2_ancestral            | y + ((y_m - D_m)/m) (down - s)                 | m = sqrt(s down)            | xi               |
| dpm_solver_pp_2s_ancestral | (down/s) y + (1 - down/s) D_m                  | m = sqrt(s down)            | xi               |
| dpm_solver_pp_sde          | (down/s) y + (1 - down/s) (mix of D and D_m)   | m = s^(1-r) s'^r, ancestral | of one Brownian path |

eta = 1 is the reverse SDE, eta = 0 the probability flow. D is the data prediction at y and D_m that at the middle.
"""

from collections.abc import Callable

import numpy as np

from samplers.solvers.steps import check_number, check_strength, ratio, require_decreasing, strength
from samplers.table import Row, Solver, stack
from sde_lib.sde import SDE


def down_and_up(r_t: float, r_s: float, eta: float) -> tuple[float, float]:
    """s_down and up of an ancestral step from sigma/alpha = r_t (infinite where alpha = 0) to r_s.

    down^2 is written as (1 - eta^2 + eta^2 (r_s/r_t)^2) r_s^2: the difference of squares would be lost to rounding.
    """
    shrink = 0.0 if np.isinf(r_t) else (r_s / r_t) ** 2
    down = r_s * np.sqrt(max(1 - eta**2 + eta**2 * shrink, 0.0))
    return down, min(r_s, eta * r_s * np.sqrt(1 - shrink))


def two_stage(name: str, sde: SDE, times: np.ndarray, eta, rows_of_step: Callable):
    """The table of `rows_of_step(t, s, down, up)`; a step from alpha = 0 or to s_down = 0 has one evaluation, of order 1."""
    require_decreasing(name, times)
    rows = []
    for t, s in zip(times[:-1], times[1:]):
        alpha, alpha_s = sde.alpha(t), sde.alpha(s)
        down, up = down_and_up(ratio(sde, t) if alpha > 0 else np.inf, ratio(sde, s), float(strength(eta, t)))
        if alpha == 0 or down == 0:
            x = alpha_s * down / sde.sigma(t)
            rows.append(Row(t, {0: x}, {0: alpha_s - alpha * x}, alpha_s * up))
        else:
            rows += rows_of_step(t, s, down, up)
    return stack(rows, "data")


def deterministic_middle(sde: SDE, t: float, down: float) -> tuple[float, float, Row]:
    """The time and sigma/alpha of the geometric middle of s and s_down, and the row that steps there."""
    r = ratio(sde, t)
    middle = np.sqrt(r * down)
    time = float(sde.time(-np.log(middle)))
    alpha = sde.alpha(time)
    return time, middle, Row(t, {0: alpha * middle / (r * sde.alpha(t))}, {0: alpha * (1 - middle / r)})


def dpm_2_ancestral(eta: float | Callable = 1.0) -> Solver:
    """DPM-2 ancestral (k-diffusion, `sample_dpm_2_ancestral`): DPM-Solver-2's midpoint down to s_down, then noise.

    Stochastic, weak order 2 on Gaussians, two evaluations a step, one where it ends at sigma = 0: 2N - 1 in all; consumes
    the data prediction. eta: k-diffusion's, see the module; a number or a function of the time that a step starts from.
    """
    check_strength("dpm_2_ancestral", eta)

    def solver(sde, times):
        def step(t, s, down, up):
            time, middle, first = deterministic_middle(sde, t, down)
            slope = sde.alpha(s) * (down - ratio(sde, t)) / middle  # of y_m - D_m
            return [first, Row(time, {0: slope / sde.alpha(time), 1: sde.alpha(s) / sde.alpha(t)}, {0: -slope}, sde.alpha(s) * up)]

        return two_stage("dpm_2_ancestral", sde, times, eta, step)

    return solver


def dpm_solver_pp_2s_ancestral(eta: float | Callable = 1.0) -> Solver:
    """DPM-Solver++(2S) ancestral (k-diffusion, `sample_dpmpp_2s_ancestral`): DPM-Solver++(2S) down to s_down, then noise.

    Stochastic, weak order 2 on Gaussians, two evaluations a step, one where it ends at sigma = 0: 2N - 1 in all; consumes
    the data prediction. eta: k-diffusion's, see the module; a number or a function of the time that a step starts from.
    """
    check_strength("dpm_solver_pp_2s_ancestral", eta)

    def solver(sde, times):
        def step(t, s, down, up):
            time, _, first = deterministic_middle(sde, t, down)
            shrink, alpha = down / ratio(sde, t), sde.alpha(s)
            return [first, Row(time, {1: alpha * shrink / sde.alpha(t)}, {0: alpha * (1 - shrink)}, alpha * up)]

        return two_stage("dpm_solver_pp_2s_ancestral", sde, times, eta, step)

    return solver


def dpm_solver_pp_sde(eta: float | Callable = 1.0, r: float = 0.5) -> Solver:
    """DPM-Solver++ SDE (k-diffusion, `sample_dpmpp_sde`): an ancestral step to the middle and one over the whole step, with the noise of one path.

    The two noises are increments of one Brownian motion in sigma/alpha, the first from s to m and the second from s to s';
    with independent ones the order would be 1. Stochastic, weak order 2 on Gaussians, two evaluations a step, one where it
    ends at sigma = 0: 2N - 1 in all; consumes the data prediction.
    eta: k-diffusion's, see the module; a number or a function of the time that a step starts from. r: the middle's share of
    the step in log-SNR. The step is taken with (1 - 1/(2r)) D + D_m/(2r). Raises ValueError for an r outside (0, 1).
    """
    check_strength("dpm_solver_pp_sde", eta)
    check_number("dpm_solver_pp_sde", above=0.0, below=1.0, r=r)

    def solver(sde, times):
        def step(t, s, down, up):
            start, end, eta_t, alpha = ratio(sde, t), ratio(sde, s), float(strength(eta, t)), sde.alpha(s)
            middle = start ** (1 - r) * end**r
            time = float(sde.time(-np.log(middle)))
            alpha_m, (down_m, up_m) = sde.alpha(time), down_and_up(start, middle, eta_t)
            x, p, noise = alpha_m * down_m / (start * sde.alpha(t)), alpha_m * (1 - down_m / start), alpha_m * up_m
            # the increment over the whole step, of variance 1, is the first one's share of it and an independent rest
            share = (start - middle) / (start - end)
            shrink, weight = down / start, 1 / (2 * r)
            to_x = {1: alpha * shrink / sde.alpha(t)}
            to_p = {0: alpha * (1 - shrink) * weight, 1: alpha * (1 - shrink) * (1 - weight)}
            if noise > 0:  # the first noise is (y_m - x y - p D)/noise, in x-coordinates
                again = alpha * up * np.sqrt(share) / noise
                to_x = {0: again, 1: to_x[1] - again * x}
                to_p[1] -= again * p
            return [Row(t, {0: x}, {0: p}, noise), Row(time, to_x, to_p, alpha * up * np.sqrt(1 - share))]

        return two_stage("dpm_solver_pp_sde", sde, times, eta, step)

    return solver
