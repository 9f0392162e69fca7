"""Solvers of the reverse SDE dx = [f x - g^2 score] dt + g dw."""

import numpy as np

from samplers.table import Row, Solver, stack


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


def ancestral(variance: str = "posterior") -> Solver:
    """Ancestral sampling: draw x_s with the mean of p(x_s | x_t, x_0 = D) (DDPM, 2006.11239, algorithm 2; for VE 2011.13456, appendix F).

    variance: that of p(x_s | x_t, x_0) ("posterior") or of p(x_t | x_s) ("forward": DDPM's sigma^2 = beta, and score_sde's choice for VP).
    Stochastic, weak order 1, one evaluation a step, consumes the data prediction; exact where alpha_t = 0. A step to sigma = 0 gives D.
    Raises ValueError for another variance.
    """
    if variance not in ("posterior", "forward"):
        raise ValueError(f"ancestral: variance '{variance}': expected posterior or forward")

    def solver(sde, times):
        t, s = times[:-1], times[1:]
        x, p, noise = posterior(sde, t, s)
        if variance == "forward":
            noise = np.where((sde.sigma(s) > 0) & (sde.alpha(t) > 0), np.sqrt(transition(sde, t, s)[1]), noise)
        return one_step_rows(t, x, p, noise)

    return solver


def one_step_rows(t, x, p, noise):
    """The table of x' = x x + p D + noise xi, from arrays over the steps."""
    return stack([Row(*row) for row in zip(t, ({0: c} for c in x), ({0: c} for c in p), noise)], "data")


def stepwise(step, sde, times):
    """The table of (x, p, noise) = step(t, s); from alpha = 0, where f and g are infinite, of the ancestral step, exact there since x_T is
    independent of the data."""
    t, s = times[:-1], times[1:]
    start = np.where(sde.alpha(t) == 0, 0.5 * (t + s), t)  # keeps `step` finite where its result is not used
    rows = [np.where(sde.alpha(t) == 0, a, b) for a, b in zip(posterior(sde, t, s), step(start, s))]
    return one_step_rows(t, *rows)


def euler_maruyama() -> Solver:
    """Euler-Maruyama on the reverse SDE: x' = x - h (f x - g^2 score) + g sqrt(h) xi (2011.13456, appendix E).

    Stochastic, weak order 1, one evaluation a step, consumes the data prediction. A step from alpha = 0 is the ancestral one.
    """

    def solver(sde, times):
        def step(t, s):
            h, g = t - s, sde.diffusion(t)
            x, p = of_score(sde, t, h * g**2)
            return 1 - h * sde.drift_coefficient(t) + x, p, g * np.sqrt(h)

        return stepwise(step, sde, times)

    return solver


def reverse_diffusion() -> Solver:
    """The reverse of the forward chain's own step x_t = x_s + F x_s + G z: x' = x - F x + G^2 score + G xi (2011.13456, appendix E, eq. 46).

    On a path F = alpha_t/alpha_s - 1 and G^2 = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, which are those of DDPM and NCSN on their chains.
    Stochastic, weak order 1, one evaluation a step, consumes the data prediction. A step from alpha = 0 is the ancestral one.
    """

    def solver(sde, times):
        def step(t, s):
            alpha_ts, variance_ts = transition(sde, t, s)
            x, p = of_score(sde, t, variance_ts)
            return 2 - alpha_ts + x, p, np.sqrt(variance_ts)

        return stepwise(step, sde, times)

    return solver
