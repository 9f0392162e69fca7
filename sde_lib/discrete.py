r"""Discrete-time forms, and their maps to and from continuous time (Song et al. 2021, 2011.13456, appendix B and E).

|                     | NCSN                                                | DDPM                                               |
|---------------------|-----------------------------------------------------|----------------------------------------------------|
| iterative           | x_i = x_{i-1} + sqrt(s_i^2 - s_{i-1}^2) eps_i        | x_i = sqrt(1 - b_i) x_{i-1} + sqrt(b_i) eps_i       |
| single step         | x_i = x_0 + s_i eps                                  | x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps       |
| continuous limit    | VE                                                   | VP                                                 |

Steps are i = 1..N and x_0 is the data. A chain is itself a path: step i of DDPM is at time i/N, step i of NCSN at (i - 1)/(N - 1)
(sigma_1 is the VE path's sigma(0)); between them log alpha (DDPM) or log sigma (NCSN) is interpolated by a monotone cubic, so that the path
has exactly the chain's marginals at the steps and a continuous velocity, and every sampler and likelihood of this project applies to a network
trained on the chain.
"""

from functools import cached_property

import numpy as np
from jaxtyping import Array, Float, Int
from scipy.interpolate import CubicHermiteSpline

from sde_lib.noise import normal
from sde_lib.numerics import as_float, as_time, expand, namespace
from sde_lib.paths import path, require, softplus
from sde_lib.sde import SDE, Time

Step = Int[Array, "*b"] | int


def linear_betas(beta_min: float = 0.1, beta_max: float = 20.0, n: int = 1000) -> tuple[float, ...]:
    """The betas of the DDPM whose limit is VP(beta_min, beta_max): linspace(beta_min/N, beta_max/N, N), 1e-4 to 0.02 by default."""
    return tuple(np.linspace(beta_min / n, beta_max / n, n).tolist())


def geometric_sigmas(sigma_min: float = 0.01, sigma_max: float = 50.0, n: int = 1000) -> tuple[float, ...]:
    """The noise levels of the NCSN whose limit is VE(sigma_min, sigma_max), increasing."""
    return tuple(np.geomspace(sigma_min, sigma_max, n).tolist())


class Monotone:
    """Monotone cubic interpolation (Hermite, slopes by second-order differences, clipped within Fritsch & Carlson's bounds, 1980) and its inverse.

    Unlike SciPy's it takes complex and traced t, and so has a `derivative`. knots increase, values are strictly monotone; float64.
    """

    def __init__(self, knots: np.ndarray, values: np.ndarray):
        self.knots, self.values = knots, values
        secants = np.diff(values) / np.diff(knots)
        slopes = np.gradient(values, knots, edge_order=min(2, len(knots) - 1))
        sides = np.abs([np.append(secants, secants[-1]), np.insert(secants, 0, secants[0])])
        slopes = np.sign(secants[0]) * np.clip(np.sign(secants[0]) * slopes, sides.min(0) / 2, 2 * sides.min(0))
        self.coefficients = CubicHermiteSpline(knots, values, slopes).c[::-1]  # of 1, dt, dt^2, dt^3

    def __call__(self, t):
        left, dt = self._piece(t, self.knots)
        c0, c1, c2, c3 = (namespace(t).asarray(c, t.real.dtype)[left] for c in self.coefficients)
        return c0 + dt * (c1 + dt * (c2 + dt * c3))

    @staticmethod
    def _piece(t, knots):
        """The interval that t is in (the nearest, outside) and the distance from its left end."""
        xp, real = namespace(t), t.real
        left = xp.clip(xp.searchsorted(xp.asarray(knots, real.dtype), real, side="right") - 1, 0, len(knots) - 2)
        return left, t - xp.asarray(knots, real.dtype)[left]

    def inverse(self, value):
        """The t at which the interpolant takes `value`, an end for a value beyond the ends: Newton's method within the interval."""
        xp, sign = namespace(value), np.sign(self.values[1] - self.values[0])
        left, above = self._piece(sign * value, sign * self.values)
        knot, width, _, c1, c2, c3 = (xp.asarray(a, value.dtype)[left] for a in (self.knots, np.diff(self.knots), *self.coefficients))
        dt = 0.5 * width
        for _ in range(16):  # three for even steps
            excess = dt * (c1 + dt * (c2 + dt * c3)) - sign * above
            dt = xp.clip(dt - excess / (c1 + dt * (2 * c2 + dt * 3 * c3)), 0.0, width)
        return knot + dt


def _single_step(chain: SDE, key, x0, i: Step):
    """x_i given x_0, and the noise in it."""
    return chain.perturb(key, x0, chain.time_of_step(i))


def _at(values: np.ndarray, i: Step):
    """values[i], an array of JAX if i is; steps outside 0..N are refused on the host (JAX would clamp them in silence)."""
    if namespace(i) is np and (np.min(i) < 1 or np.max(i) >= len(values)):
        raise ValueError(f"step {i}: expected 1 to {len(values) - 1}")
    return namespace(i).asarray(values)[i]


@path
class DDPM(SDE):
    """Ho et al. 2020 (2006.11239): the chain with the given betas (b_1..b_N), as a path. Its limit is VP.

    Raises ValueError unless all betas are in (0, 1).
    """

    betas: tuple[float, ...] = linear_betas()

    def __post_init__(self):
        require(len(self.betas) > 1 and 0 < min(self.betas) and max(self.betas) < 1, self, "two or more betas in (0, 1)")

    @property
    def N(self) -> int:
        return len(self.betas)

    @cached_property
    def log_alphas(self) -> np.ndarray:
        """log sqrt(abar_i) for i = 0..N, float64."""
        return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.array(self.betas)))])

    @cached_property
    def log_alpha(self) -> Monotone:
        """log alpha(t), through the `log_alphas` at the times i/N."""
        return Monotone(np.arange(self.N + 1) / self.N, self.log_alphas)

    def time_of_step(self, i: Step):
        """t = i/N."""
        return i / self.N

    def step_of_time(self, t: Time):
        """The step in 1..N nearest to time t."""
        return namespace(t).clip(namespace(t).round(as_time(t) * self.N), 1, self.N).astype(int)

    def alpha(self, t: Time):
        t = as_time(t)
        return namespace(t).exp(self.log_alpha(t))

    def variance(self, t: Time):
        t = as_time(t)
        return -namespace(t).expm1(2 * self.log_alpha(t))

    def sigma(self, t: Time):
        return namespace(t).sqrt(self.variance(t))

    def time(self, log_snr: Time):
        return self.log_alpha.inverse(-0.5 * softplus(-2 * as_time(log_snr)))

    def iterate(self, key, x: Float[Array, "b ..."], i: Step) -> Float[Array, "b ..."]:
        """x_i given x_{i-1} = x."""
        x, beta = as_float(x), _at(np.concatenate([[0.0], self.betas]), i)
        xp = namespace(beta)
        return expand(xp.sqrt(1 - beta), x) * x + expand(xp.sqrt(beta), x) * normal(key, x.shape, x.dtype)

    single_step = _single_step


@path
class NCSN(SDE):
    """Song & Ermon 2019 (1907.05600): the chain with the given noise levels (s_1 < ... < s_N), as a path. Its limit is VE.

    Raises ValueError unless the levels are positive and increase.
    """

    sigmas: tuple[float, ...] = geometric_sigmas()
    sampling_eps = 1e-5

    def __post_init__(self):
        increasing = len(self.sigmas) > 1 and self.sigmas[0] > 0 and np.all(np.diff(self.sigmas) > 0)
        require(increasing, self, "two or more positive sigmas in increasing order")

    @property
    def N(self) -> int:
        return len(self.sigmas)

    @cached_property
    def log_sigma(self) -> Monotone:
        """log sigma(t), through the levels at the times (i - 1)/(N - 1)."""
        return Monotone(np.arange(self.N) / (self.N - 1), np.log(self.sigmas))

    def time_of_step(self, i: Step):
        """t = (i - 1)/(N - 1)."""
        return (i - 1) / (self.N - 1)

    def step_of_time(self, t: Time):
        """The step in 1..N nearest to time t."""
        return namespace(t).clip(namespace(t).round(as_time(t) * (self.N - 1)) + 1, 1, self.N).astype(int)

    def alpha(self, t: Time):
        return namespace(t).ones_like(as_time(t))

    def sigma(self, t: Time):
        t = as_time(t)
        return namespace(t).exp(self.log_sigma(t))

    def time(self, log_snr: Time):
        return self.log_sigma.inverse(-as_time(log_snr))

    def iterate(self, key, x: Float[Array, "b ..."], i: Step) -> Float[Array, "b ..."]:
        """x_i given x_{i-1} = x."""
        variances = np.concatenate([[0.0], np.diff(np.concatenate([[0.0], self.sigmas]) ** 2)])
        x, step = as_float(x), _at(variances, i)
        return x + expand(namespace(step).sqrt(step), x) * normal(key, x.shape, x.dtype)

    single_step = _single_step
