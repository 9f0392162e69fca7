r"""Training on the variational bound, with a learned schedule (VDM, Kingma et al. 2021, 2107.00630).

    -log p(x) <= KL(q(x_T | x) || prior) - E log p(x | x_eps) + E_u [-lambda'(u) |eps - eps_hat(x_lambda(u), lambda(u))|^2]

The last term depends on the schedule lambda(u) by its ends only (section 5.1). The ends are trained by the bound, as the network is; what lies
between them by the variance of its estimate, which is all that it changes (appendix I). So the schedule is a way to draw log-SNRs, and a model of
it is a denoiser on any variance-preserving path.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.schedule import Schedule
from samplers.bound import gaussian_left, levels_left, noise_error, prior_kl
from sde_lib import Denoiser


def least_variance(fn: Callable) -> Callable:
    """fn(rest, schedule) -> [B], with the derivative of fn^2 in `schedule`, arrays [B], whose mean is that of the variance if fn's mean does not
    depend on them. One backward pass serves both. rest: all that fn depends on, a pytree. fn should be of order 1, or these derivatives outweigh
    the others."""
    wrapped = jax.custom_vjp(fn)

    def forward(rest, schedule):
        value, pull = jax.vjp(fn, rest, schedule)
        return value, (value, pull)

    def backward(saved, g):
        value, pull = saved
        d_rest, d_schedule = pull(g)
        return d_rest, jax.tree.map(lambda d: 2 * value * d, d_schedule)

    wrapped.defvjp(forward, backward)
    return wrapped


def diffusion(rest, schedule):
    """The bound's last term at one random log-SNR, in nats for each dimension, [B]; schedule: s(u) and s'(u) [B] of `models.schedule.Schedule`."""
    den, ends, x, noise = rest
    come, slope = schedule
    span = ends[1] - ends[0]
    return -span * slope * noise_error(den, x, noise, ends[0] + span * come) / x[0].size


def bound(module: Schedule, params, den: Denoiser, dataset, x: Float[Array, "b ..."], u: Float[Array, " b"], noise, last_noise):
    """The bound of each example at one random log-SNR, in bits/dim of discrete data or nats of continuous data for each dimension, [B].

    params: of the schedule. x: on the middles of the levels where these are discrete. u: uniform in (0, 1). noise, last_noise: normal.
    """
    ends = params["ends"]
    schedule = jax.jvp(lambda u: module.apply({"params": params}, u), (u,), (jnp.ones_like(u),))
    if dataset.levels:
        decoder = levels_left(x, last_noise, dataset.middles(np.arange(dataset.levels)), ends[0])
    else:
        decoder = gaussian_left(x, ends[0])
    total = least_variance(diffusion)((den, ends, x, noise), schedule) + (prior_kl(den.sde, x, ends[1]) + decoder) / x[0].size
    return total / np.log(2) if dataset.levels else total + dataset.log_volume / dataset.dim
