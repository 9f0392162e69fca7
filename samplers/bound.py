r"""The variational bound of a diffusion model (Ho et al. 2020; Kingma et al. 2021, "VDM", 2107.00630): an upper bound of -log p(x), without an ODE.

    -log p(x) <= KL(q(x_T | x) || prior)  -  E log p(x | x_eps)  +  (1/2) \int |x - D(x_t, t)|^2 dSNR(t),         SNR = (alpha/sigma)^2.

With lambda = log(alpha/sigma) and the errors of the noise the integral is \int |eps - eps_hat|^2 dlambda (VDM, eq. 18), estimated at random lambda.
In n steps it is a sum over equal steps of log-SNR (VDM, eq. 13), which is larger, and falls to the integral. With an exact denoiser the bound's
mean over the data is the mean of -log p, but for the ends; that of a single x is not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.adaptive import check_eps
from samplers.checks import check_denoiser, checked
from samplers.guidance import check_unguided
from sde_lib.brief import results
from sde_lib.denoiser import MIN_ALPHA, Denoiser
from sde_lib.noise import example_keys
from sde_lib.numerics import expand


class VariationalBound(NamedTuple):
    """In nats for each example [B], upper bounds of -log p: total = prior + decoder + diffusion; stderr of the last over its random times."""

    total: Float[Array, " b"]
    prior: Float[Array, " b"]
    decoder: Float[Array, " b"]
    diffusion: Float[Array, " b"]
    stderr: Float[Array, " b"]
    __repr__ = results


def variational_bound(
    den: Denoiser,
    x: Float[Array, "b ..."],
    key,
    times: int = 64,
    steps: int | None = None,
    eps: float | None = None,
    start: float | None = None,
    middles: Float[np.ndarray, " l"] | None = None,
) -> VariationalBound:
    """The bound for x [B, ...], with `times` (even) evaluations of the network an example: stratified log-SNRs, each with its own noise.

    key: one, or one per example. steps: of the discrete bound; None: the continuous one. eps: of the last latent (default `den.sde.eps`).
    start: the time of the first latent (default T, or where alpha is 1e-3 on a path that ends below). middles: for discrete data, the x of each
    level: the decoder is then that of `levels_left`, and the bound that of -log P(level); None: the Gaussian N(x_eps/alpha, (sigma/alpha)^2).
    Raises ValueError for times that are not even, less than one step, ends between which there is no path, and a guided denoiser.
    """
    check_denoiser(den, "variational_bound")
    x = checked(den, x, "x", key)
    check_unguided(den, "variational_bound")
    den.check_uncoupled("variational_bound")
    if times < 2 or times % 2 or (steps is not None and steps < 1):
        raise ValueError(f"times = {times}, steps = {steps}: expected an even number of times, one or more steps")
    sde = den.sde
    least = np.log(MIN_ALPHA) - np.log(sde.sigma(sde.T))
    low = max(float(sde.log_snr(sde.T if start is None else start)), float(least))
    high = float(sde.log_snr(check_eps(den, eps)))
    if low >= high:
        raise ValueError(f"eps = {eps}, start = {start}: expected a signal-to-noise ratio that is higher at eps than at the start")
    return _bound(den, x, example_keys(key, len(x)), low, high, None if middles is None else jnp.asarray(middles, x.dtype), times, steps)


def _sum(a):
    return jnp.sum(a.reshape(len(a), -1), -1)


def noise_error(den: Denoiser, x: Float[Array, "b ..."], noise: Float[Array, "b ..."], log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
    """|eps - eps_hat|^2 at log-SNRs [B]: minus the derivative of the bound in them (VDM, eq. 17)."""
    t = den.sde.time(log_snr)
    return _sum((noise - den.noise(expand(den.sde.alpha(t), x) * x + expand(den.sde.sigma(t), x) * noise, t)) ** 2)


def prior_kl(sde, x: Float[Array, "b ..."], log_snr) -> Float[Array, " b"]:
    """KL(q(x_t | x) || prior) in nats, at the t of log_snr []."""
    t = sde.time(jnp.asarray(log_snr, x.dtype))
    scale = sde.sigma(sde.T)
    alpha, ratio = sde.alpha(t), sde.sigma(t) / scale
    return 0.5 * (_sum((alpha * x / scale) ** 2) + x[0].size * (ratio**2 - 1 - 2 * jnp.log(ratio)))


MOST_LEVELS = 4096


def levels_left(x: Float[Array, "b ..."], noise: Float[Array, "b ..."], middles: Float[Array, " l"], log_snr) -> Float[Array, " b"]:
    """-log P(level of x | x_t) in nats, at log_snr [], where all levels are given equal weights (VDM, section 3.3). x: on the middles [L]."""
    if len(middles) > MOST_LEVELS:
        raise ValueError(f"{len(middles)} levels, with all of which each value is compared: expected at most {MOST_LEVELS}; use a bound of a density")
    std = jnp.exp(-jnp.asarray(log_snr, x.dtype))  # sigma/alpha
    logits = -0.5 * (((x + std * noise)[..., None] - middles) / std) ** 2
    level = jnp.argmin(jnp.abs(x[..., None] - middles), -1)
    return -_sum(jnp.take_along_axis(jax.nn.log_softmax(logits, -1), level[..., None], -1)[..., 0])


def gaussian_left(x: Float[Array, "b ..."], log_snr) -> Float[Array, " b"]:
    """-E log N(x; x_t/alpha, (sigma/alpha)^2) in nats, at log_snr []."""
    return jnp.full(len(x), x[0].size * (0.5 * jnp.log(2 * jnp.pi) - log_snr + 0.5))


@jax.jit(static_argnames=("times", "steps"))
def _bound(den, x, keys, low, high, middles, times, steps):
    span = high - low
    time_keys, noise_keys, last_keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
    offsets = jax.vmap(lambda k: jax.random.uniform(k, (times,), x.dtype))(time_keys)
    u = (jnp.arange(times) + offsets) / times  # one in each of equal strata

    def one(i):
        """-log p's part of one random time."""
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), x.shape[1:], x.dtype))(noise_keys)
        here = u[:, i] if steps is None else jnp.floor(u[:, i] * steps) / steps
        # steps (SNR(s) - SNR(t))/2 |x - D|^2, where |x - D|^2 = error/SNR(t)
        return noise_error(den, x, noise, low + span * here) * (span if steps is None else 0.5 * steps * jnp.expm1(2 * span / steps))

    parts = jax.lax.map(one, jnp.arange(times))
    diffusion = parts.mean(0)
    stderr = jnp.sqrt(jnp.sum((parts[::2] - parts[1::2]) ** 2, 0)) / times  # of neighbouring strata, between which the integrand hardly changes
    prior = prior_kl(den.sde, x, low)
    if middles is None:
        decoder = gaussian_left(x, high)
    else:
        decoder = levels_left(x, jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(last_keys), middles, high)
    return VariationalBound(prior + decoder + diffusion, prior, decoder, diffusion, stderr)
