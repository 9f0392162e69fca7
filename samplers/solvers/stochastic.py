"""Solvers of the reverse SDE dx = [f x - g^2 score] dt + g dw."""

import numpy as np

from samplers.table import Row, Solver, stack


def posterior(sde, t: float, s: float) -> tuple[float, float, float]:
    """Coefficients of x_t and x_0, and standard deviation, of the Gaussian p(x_s | x_t, x_0), s < t (2006.11239, eq. 7; 2107.00630, eq. 25)."""
    alpha_s, sigma_s, sigma_t = sde.alpha(s), sde.sigma(s), sde.sigma(t)
    alpha_ts = sde.alpha(t) / alpha_s
    variance_ts = sigma_t**2 - (alpha_ts * sigma_s) ** 2
    return alpha_ts * (sigma_s / sigma_t) ** 2, alpha_s * variance_ts / sigma_t**2, np.sqrt(variance_ts) * sigma_s / sigma_t


def ancestral() -> Solver:
    """Ancestral sampling: draw x_s from p(x_s | x_t, x_0 = D) (DDPM, 2006.11239, algorithm 2 with the posterior variance; for VE
    2011.13456, appendix F). Stochastic, weak order 1, one evaluation a step, consumes the data prediction; exact where alpha_t = 0."""

    def solver(sde, times):
        rows = []
        for t, s in zip(times[:-1], times[1:]):
            x, p, noise = posterior(sde, t, s)
            rows.append(Row(t, {0: x}, {0: p}, noise))
        return stack(rows, "data")

    return solver


def euler_maruyama() -> Solver:
    """Euler-Maruyama on the reverse SDE: x' = x - h (f x - g^2 score) + g sqrt(h) xi (2011.13456, appendix E).

    Stochastic, weak order 1, one evaluation a step, consumes the data prediction. In it the drift is alpha' D + (2 sigma' - f sigma) eps with
    eps = (x - alpha D)/sigma. A step from alpha = 0, where f and g are infinite, is the ancestral one: x there is independent of the data and of
    every earlier x.
    """

    def solver(sde, times):
        rows = []
        for t, s in zip(times[:-1], times[1:]):
            h, alpha, sigma = t - s, sde.alpha(t), sde.sigma(t)
            if alpha == 0:
                x, p, noise = posterior(sde, t, s)
            else:
                of_noise = 2 * sde.sigma_dot(t) - sde.drift_coefficient(t) * sigma
                x = 1 - h * of_noise / sigma
                p = -h * (sde.alpha_dot(t) - of_noise * alpha / sigma)
                noise = sde.diffusion(t) * np.sqrt(h)
            rows.append(Row(t, {0: x}, {0: p}, noise))
        return stack(rows, "data")

    return solver
