r"""Stochastic differential equations of generative modelling, each given by its two marginal coefficients.

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I),      t = 0 is the data, t = T is the prior, always.

Everything else follows (Song et al. 2021, arXiv 2011.13456, section 3; Kingma et al. 2021, arXiv 2107.00630, appendix A):

    forward SDE              dx = f(t) x dt + g(t) dw,        f = alpha'/alpha,   g^2 = (sigma^2)' - 2 f sigma^2
    reverse SDE              dx = [f x - g^2 score] dt + g dw,                    run from T to 0
    probability-flow ODE     dx = [f x - g^2 score / 2] dt
    log-SNR                  lambda = log(alpha / sigma)      (half the logarithm of the signal-to-noise ratio)
    prior                    N(0, sigma(T)^2 I)

To add a path, subclass `SDE` with `alpha`, `sigma` and `time`; write them with ``xp = namespace(t)`` so that they run on the host
in float64 as well as on the device, and with expm1/log1p where the difference of nearly equal numbers would be taken.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sde_lib.checks import check_batch, check_time
from sde_lib.noise import normal
from sde_lib.numerics import as_float, as_time, derivative, expand, namespace

Time = Float[Array, "*b"] | float


class SDE:
    """Base of all paths: derives drift, diffusion, marginals, prior and reverse dynamics from alpha and sigma.

    Subclasses are frozen dataclasses of Python numbers. They are static (leafless) pytrees, as all subclasses are made: they may be closed
    over, passed through `jax.jit`, `vmap` or `scan`, and compared and hashed by value.

    T: final time. eps: smallest time at which training and likelihood work. sampling_eps: smallest time of sampling grids.
    few_grid: the grid (`samplers.grids`) of few steps, equal ones in t, but on a path most of whose t is noise.
    """

    T: float = 1.0
    eps: float = 1e-5
    sampling_eps: float = 1e-3
    few_grid: str = "uniform"

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        jax.tree_util.register_static(cls)

    def alpha(self, t: Time):
        """Signal coefficient alpha(t), shaped as t."""
        raise ValueError(f"{type(self).__name__} has no `alpha`: define alpha(self, t), the coefficient of the data")

    def sigma(self, t: Time):
        """Marginal standard deviation sigma(t), shaped as t."""
        raise ValueError(f"{type(self).__name__} has no `sigma`: define sigma(self, t), the coefficient of the noise")

    def time(self, log_snr: Time):
        """The time t at which `log_snr` takes the given value: its inverse."""
        raise ValueError(f"{type(self).__name__} has no `time`: define time(self, log_snr), the t at which log(alpha/sigma) takes the given value")

    def variance(self, t: Time):
        """sigma(t)^2. Paths whose sigma has an infinite slope at t = 0 define this one and derive sigma from it."""
        return self.sigma(t) ** 2

    def log_snr(self, t: Time):
        """log(alpha / sigma): decreasing in t; infinite where alpha or sigma is zero."""
        t = as_time(t)
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return xp.log(self.alpha(t)) - xp.log(self.sigma(t))

    def alpha_dot(self, t: Time):
        """d alpha / dt."""
        return derivative(self.alpha, t)

    def sigma_dot(self, t: Time):
        """d sigma / dt."""
        return derivative(self.sigma, t)

    def drift_coefficient(self, t: Time):
        """f(t) = alpha'/alpha; minus infinity where alpha = 0."""
        with np.errstate(divide="ignore"):
            return self.alpha_dot(t) / self.alpha(t)

    def drift(self, x: Float[Array, "b ..."], t: Time) -> Float[Array, "b ..."]:
        """Drift of the forward SDE, f(t) x. x: [B, ...]; t: [] or [B]."""
        x = as_float(x)
        return expand(self.drift_coefficient(t), x) * x

    def diffusion(self, t: Time):
        """Diffusion g(t) of the forward SDE, shaped as t: g^2 = (sigma^2)' - 2 f sigma^2 (2107.00630, eq. 23)."""
        g2 = derivative(self.variance, t) - 2 * self.drift_coefficient(t) * self.variance(as_time(t))
        return namespace(g2).sqrt(namespace(g2).maximum(g2, 0.0))  # rounding at t = 0, where sub-VP has g = 0

    def marginal(self, x0: Float[Array, "b ..."], t: Time) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
        """Mean [B, ...] and standard deviation [B] of x_t given x_0."""
        x0 = as_float(x0)
        check_batch(x0, "x0")
        check_time(t, len(x0))
        t = jnp.broadcast_to(jnp.asarray(t, x0.dtype), x0.shape[:1])
        return expand(self.alpha(t), x0) * x0, self.sigma(t)

    def perturb(self, key, x0: Float[Array, "b ..."], t: Time) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
        """Draw x_t given x_0: returns x_t and the standard normal noise in it, both [B, ...].

        key: a single key, or one per example (`sde_lib.noise.example_keys`).
        """
        x0 = as_float(x0)
        mean, std = self.marginal(x0, t)
        noise = normal(key, x0.shape, x0.dtype)
        return mean + expand(std, x0) * noise, noise

    def prior_sample(self, key, shape: tuple[int, ...], dtype=None) -> Float[Array, "b ..."]:
        """x_T ~ N(0, sigma(T)^2 I), of shape [B, ...]; example i does not depend on B."""
        return float(self.sigma(self.T)) * normal(key, shape, dtype)

    def prior_log_prob(self, x: Float[Array, "b ..."], std: float | None = None) -> Float[Array, " b"]:
        """log N(x; 0, std^2 I) in nats, [B]; std: sigma(T) unless it is given."""
        check_batch(x)
        std = float(self.sigma(self.T) if std is None else std)
        x = as_float(x)
        x = x.reshape(x.shape[0], -1)
        return -0.5 * jnp.sum((x / std) ** 2, -1) - x.shape[-1] * (0.5 * np.log(2 * np.pi) + np.log(std))

    def reverse_drift(self, x: Float[Array, "b ..."], t: Time, score: Float[Array, "b ..."], eta: float = 1.0) -> Float[Array, "b ..."]:
        """Drift f x - (1 + eta^2)/2 g^2 score of the family of processes that share the marginals; their diffusion is eta g.

        eta = 1 is the reverse SDE (Anderson 1982; 2011.13456, eq. 6), eta = 0 the probability-flow ODE (eq. 13). The drift is
        with respect to t, which runs from T down.
        """
        return self.drift(x, t) - 0.5 * (1 + eta**2) * expand(self.diffusion(t) ** 2, x) * score

    def probability_flow(self, x: Float[Array, "b ..."], t: Time, score: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """dx/dt of the probability-flow ODE (2011.13456, eq. 13)."""
        return self.reverse_drift(x, t, score, eta=0.0)
