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
from sde_lib.denoiser import MIN_ALPHA, Denoiser
from sde_lib.noise import example_keys
from sde_lib.numerics import as_float, expand


class VariationalBound(NamedTuple):
    """In nats for each example [B], upper bounds of -log p: total = prior + decoder + diffusion; stderr of the last over its random times."""

    total: Float[Array, " b"]
    prior: Float[Array, " b"]
    decoder: Float[Array, " b"]
    diffusion: Float[Array, " b"]
    stderr: Float[Array, " b"]


def variational_bound(
    den: Denoiser,
    x: Float[Array, "b ..."],
    key,
    times: int = 64,
    steps: int | None = None,
    eps: float | None = None,
    middles: Float[np.ndarray, " l"] | None = None,
) -> VariationalBound:
    """The bound for x [B, ...], with `times` (even) evaluations of the network an example: stratified log-SNRs, each with its own noise.

    key: one, or one per example. steps: of the discrete bound; None: the continuous one. eps: of the last latent (default `den.sde.eps`).
    middles: for discrete data, the x of each level: the decoder is then the probability of the level of x given x_eps under equal weights of all
    (VDM, section 3.3), and the bound that of -log P(level); None: the Gaussian N(x_eps/alpha, (sigma/alpha)^2).
    A path that begins at an alpha below 1e-3 is begun there. Raises ValueError for times that are not even, less than one step, and an
    eps that leaves no path.
    """
    if times < 2 or times % 2 or (steps is not None and steps < 1):
        raise ValueError(f"times = {times}, steps = {steps}: expected an even number of times, one or more steps")
    sde, x = den.sde, as_float(x)
    least = np.log(MIN_ALPHA) - np.log(sde.sigma(sde.T))
    low, high = max(float(sde.log_snr(sde.T)), float(least)), float(sde.log_snr(check_eps(den, eps)))
    if low >= high:
        raise ValueError(f"eps = {eps}: its signal-to-noise ratio is no more than that of the prior")
    return _bound(den, x, example_keys(key, len(x)), low, high, None if middles is None else jnp.asarray(middles, x.dtype), times, steps)


def _sum(a):
    return jnp.sum(a.reshape(len(a), -1), -1)


@jax.jit(static_argnames=("times", "steps"))
def _bound(den, x, keys, low, high, middles, times, steps):
    sde, dim, span = den.sde, x[0].size, high - low
    time_keys, noise_keys, last_keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
    offsets = jax.vmap(lambda k: jax.random.uniform(k, (times,), x.dtype))(time_keys)
    u = (jnp.arange(times) + offsets) / times  # one in each of equal strata

    def one(i):
        """-log p's part of one random time."""
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), x.shape[1:], x.dtype))(noise_keys)
        here = u[:, i] if steps is None else jnp.floor(u[:, i] * steps) / steps
        lam = low + span * here
        t = sde.time(lam)
        error = _sum((noise - den.noise(expand(sde.alpha(t), x) * x + expand(sde.sigma(t), x) * noise, t)) ** 2)
        # steps (SNR(s) - SNR(t))/2 |x - D|^2, where |x - D|^2 = error/SNR(t)
        return error * (span if steps is None else 0.5 * steps * jnp.expm1(2 * span / steps))

    parts = jax.lax.map(one, jnp.arange(times))
    diffusion = parts.mean(0)
    stderr = jnp.sqrt(jnp.sum((parts[::2] - parts[1::2]) ** 2, 0)) / times  # of neighbouring strata, between which the integrand hardly changes
    t = sde.time(jnp.asarray(low, x.dtype))
    alpha, sigma, scale = sde.alpha(t), sde.sigma(t), sde.sigma(sde.T)
    prior = 0.5 * (_sum((alpha * x / scale) ** 2) + dim * ((sigma / scale) ** 2 - 1 - 2 * jnp.log(sigma / scale)))
    std = jnp.asarray(jnp.exp(-high), x.dtype)  # sigma/alpha at eps
    if middles is None:
        decoder = jnp.full(len(x), dim * (0.5 * jnp.log(2 * jnp.pi) + jnp.log(std) + 0.5))
    else:
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(last_keys)
        logits = -0.5 * (((x + std * noise)[..., None] - middles) / std) ** 2
        level = jnp.argmin(jnp.abs(x[..., None] - middles), -1)
        decoder = -_sum(jnp.take_along_axis(jax.nn.log_softmax(logits, -1), level[..., None], -1)[..., 0])
    return VariationalBound(prior + decoder + diffusion, prior, decoder, diffusion, stderr)
