"""Time grids: n + 1 decreasing times (float64, host) from sde.T to a small eps, for n steps.

`eps` is by default the path's `sampling_eps`. A grid that goes on to the data itself ends at 0: ``with_zero(grid)``; every solver table
then ends with a step to sigma = 0. Paths that reach alpha = 0 have an infinite noise-to-signal ratio at T; the grids in log-SNR or in
sigma/alpha are spaced from alpha = 1e-3 on and put T itself in the place of their first point.
"""

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np

from sde_lib.checks import check_path
from sde_lib.denoiser import MIN_ALPHA
from sde_lib.paths import linear_beta_integral, linear_beta_time, softplus
from sde_lib.sde import SDE


def _eps(sde: SDE, n: int, eps: float | None) -> float:
    check_path(sde)
    eps = sde.sampling_eps if eps is None else eps
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise ValueError(f"n = {n!r} steps: expected a whole number of at least 1")
    if not 0 < eps < sde.T:
        raise ValueError(f"eps = {eps}: expected 0 < eps < T = {sde.T}; a grid that ends at 0 is with_zero(grid)")
    return eps


def _power(rho: float) -> float:
    if not isinstance(rho, Real) or not 0 < rho < np.inf:
        raise ValueError(f"rho = {rho!r} of a grid: expected a finite number above 0")
    return rho


def log_snr_ends(sde: SDE, eps: float) -> tuple[float, float]:
    """log-SNR at the first and the last time, the first one kept finite."""
    floor = np.log(MIN_ALPHA) - np.log(sde.sigma(sde.T)) if sde.alpha(sde.T) < MIN_ALPHA else -np.inf
    return max(float(sde.log_snr(sde.T)), floor), float(sde.log_snr(eps))


def _exact_ends(times: np.ndarray, sde: SDE, eps: float) -> np.ndarray:
    times[0], times[-1] = sde.T, eps
    return times


def uniform(sde: SDE, n: int, eps: float | None = None) -> np.ndarray:
    """Equal steps in t."""
    return np.linspace(sde.T, _eps(sde, n, eps), n + 1)


def few(sde: SDE, n: int) -> np.ndarray:
    """n of n + 1 equal steps in t from T to 0, before the last, which denoises: T, T (1 - 1/(n + 1)), ..., T/(n + 1); n may be 0.

    Of models of so many steps, which are trained at these times.
    """
    check_path(sde)
    if not isinstance(n, Integral) or n < 0:
        raise ValueError(f"n = {n!r} steps before the last: expected a whole number of at least 0")
    return sde.T * (1 - np.arange(n + 1) / (n + 1))


def quadratic(sde: SDE, n: int, eps: float | None = None) -> np.ndarray:
    """Equal steps in sqrt(t) (DDIM's "quad", 2010.02502)."""
    return _exact_ends(np.linspace(np.sqrt(sde.T), np.sqrt(_eps(sde, n, eps)), n + 1) ** 2, sde, _eps(sde, n, eps))


def cosine(sde: SDE, n: int, eps: float | None = None) -> np.ndarray:
    """Equal steps in the angle arctan(sigma/alpha): what uniform t is to the cosine and trigonometric paths, on any path."""
    eps = _eps(sde, n, eps)
    first, last = (np.arctan2(sde.sigma(t), sde.alpha(t)) for t in (sde.T, eps))
    return _exact_ends(sde.time(-np.log(np.tan(np.linspace(first, last, n + 1)))), sde, eps)


def log_snr(sde: SDE, n: int, eps: float | None = None) -> np.ndarray:
    """Equal steps in log-SNR (DPM-Solver, 2206.00927)."""
    eps = _eps(sde, n, eps)
    return _exact_ends(sde.time(np.linspace(*log_snr_ends(sde, eps), n + 1)), sde, eps)


def karras(sde: SDE, n: int, eps: float | None = None, rho: float = 7.0) -> np.ndarray:
    """Equal steps in (sigma/alpha)^(1/rho) (EDM, 2206.00364, eq. 5)."""
    eps, rho = _eps(sde, n, eps), _power(rho)
    first, last = (np.exp(-np.array(ends) / rho) for ends in log_snr_ends(sde, eps))
    return _exact_ends(sde.time(-rho * np.log(np.linspace(first, last, n + 1))), sde, eps)


def exponential(sde: SDE, n: int, eps: float | None = None, rho: float = 1.0) -> np.ndarray:
    """log(sigma/alpha) falls with the rho-th power of even steps (k-diffusion's "polyexponential"); rho = 1, its "exponential", is `log_snr`."""
    eps, rho = _eps(sde, n, eps), _power(rho)
    first, last = log_snr_ends(sde, eps)
    return _exact_ends(sde.time(last + (first - last) * np.linspace(1.0, 0.0, n + 1) ** rho), sde, eps)


def _vp_betas(sde: SDE, eps: float, t_min: float) -> tuple[float, float]:
    """beta_min and beta_max of a linear beta(t) with which sigma/alpha on [t_min, 1] has the range that it has for `sde` on [eps, T]; beta_min may be
    negative, beta being used on [t_min, 1] alone. Raises ValueError where beta would be, and for a t_min outside (0, 1)."""
    if not isinstance(t_min, Real) or not 0 < t_min < 1:
        raise ValueError(f"t_min = {t_min!r} of VP's time: expected a number between 0 and 1")
    first, last = (np.log1p(np.exp(-2 * log_snr)) for log_snr in log_snr_ends(sde, eps))
    slope = 2 * (last / t_min - first) / (t_min - 1)
    if min(first - 0.5 * slope + slope * t_min, first + 0.5 * slope) <= 0:
        raise ValueError(f"no VP path has this range of sigma/alpha between t = {t_min} and 1: expected a larger t_min or a smaller eps than {eps}")
    return first - 0.5 * slope, first + 0.5 * slope


def vp_time(sde: SDE, eps: float | None = None, t_min: float = 1e-3) -> Callable:
    """log-SNR -> time of a VP-like path fitted to the range of sigma/alpha of `sde`, from t_min at eps to 1 at T: the variable in which DEIS and
    others were published on EDM's models, whose own t is sigma."""
    betas = _vp_betas(sde, _eps(sde, 1, eps), t_min)
    return lambda log_snr: linear_beta_time(*betas, softplus(-2 * np.asarray(log_snr)))


def vp_uniform(sde: SDE, n: int, eps: float | None = None, rho: float = 1.0, t_min: float = 1e-3) -> np.ndarray:
    """Equal steps in t^(1/rho) of that VP-like time (rho = 1: "time_uniform" of diff-sampler)."""
    eps, rho = _eps(sde, n, eps), _power(rho)
    betas = _vp_betas(sde, eps, t_min)
    t = np.linspace(1.0, t_min ** (1 / rho), n + 1) ** rho
    return _exact_ends(sde.time(-0.5 * np.log(np.expm1(linear_beta_integral(*betas, t)))), sde, eps)


def with_zero(times: np.ndarray) -> np.ndarray:
    """The grid with one more step, to t = 0. EDM's N-step schedule is ``with_zero(karras(sde, N - 1))``."""
    return np.append(times, 0.0)
