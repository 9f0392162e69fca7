r"""Sampling of a stochastic interpolant by its velocity and its score, as an ODE or an SDE (`sde_lib.interpolants`)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.table import check_times
from sde_lib.checks import check_batch
from sde_lib.interpolants import Interpolant
from sde_lib.noise import example_keys
from sde_lib.numerics import as_float


def sample_bridge(
    interpolant: Interpolant,
    velocity: Callable,
    noise: Callable | None,
    x_T: Float[Array, "b ..."],
    times: Float[np.ndarray, " n"],
    diffusion: Callable = lambda t: 0.0 * t,
    key=None,
    path: bool = False,
) -> Float[Array, "b ..."]:
    """Carry x_T [B, ...] from times[0] to times[-1] by Euler-Maruyama steps of dx = (v - D score) dt + sqrt(2 D) dw; one compiled scan.

    velocity, noise: (x [B, ...], t [B]) -> v and E[z | x_t], `jax.tree_util.Partial` of their parameters; noise is None where D = 0: Euler's method.
    diffusion: D(t) >= 0 of host times, 0 where gamma is. The Schroedinger bridge's is the constant bridge^2/2, on times at which gamma is above 0.
    key: one, or one per example; the noise of an example does not depend on its batch-mates. path: all x instead, [N, B, ...].
    Raises ValueError for bad times, for D < 0, and for D > 0 without a score, where gamma = 0, or without a key.
    """
    times, x_T = check_times(interpolant.sde, times), as_float(x_T)
    check_batch(x_T, "x_T")
    strength = np.broadcast_to(np.asarray(diffusion(times[:-1]), np.float64), times[:-1].shape)
    drawn = bool(np.any(strength))
    unknown = noise is None or key is None or np.any((strength > 0) & (interpolant.gamma(times[:-1]) == 0))
    if np.any(strength < 0) or (drawn and unknown):
        found = f"diffusion from {strength.min():g} to {strength.max():g}"
        raise ValueError(f"{found}: expected at least 0, and above 0 only with noise, a key, and gamma above 0 there")
    rows = tuple(np.asarray(c, x_T.dtype) for c in (times[:-1], np.diff(times), strength))
    x, xs = _march(interpolant, velocity, noise, x_T, rows, example_keys(key, len(x_T)) if drawn else None, path)
    return jnp.concatenate([x_T[None], xs]) if path else x


@partial(jax.jit, static_argnames="path")
def _march(interpolant, velocity, noise, x, rows, keys, path):
    def step(x, row):
        i, (t, dt, strength) = row
        t = jnp.full(len(x), t)
        drift = velocity(x, t)
        if keys is None:
            x = x + dt * drift
        else:
            xi = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), x.shape[1:], x.dtype))(keys)
            score = jnp.where(strength > 0, interpolant.score(noise(x, t), t), 0.0)
            x = x + dt * (drift - strength * score) + jnp.sqrt(-2 * dt * strength) * xi
        return x, x if path else None

    return jax.lax.scan(step, x, (jnp.arange(len(rows[0])), rows))
