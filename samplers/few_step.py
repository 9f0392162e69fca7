"""Sampling of flow maps in few jumps: jump, retreat, renoise."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.checks import check_flow_map, checked
from samplers.table import check_times
from sde_lib.flow_map import FlowMap
from sde_lib.noise import example_keys


def jumps(flow_map: FlowMap, x_T: Float[Array, "b ..."], times: Float[np.ndarray, " n"], gamma: float = 0.0, key=None) -> Float[Array, "b ..."]:
    """Carry x_T [B, ...] from times[0] to times[-1] by a jump for each interval, len(times) - 1 evaluations; one compiled scan.

    To come to s, the jump goes on to s' = s - gamma (s - times[-1]) and noise takes it back to s: x_s = r X + sqrt(sigma_s^2 - r^2 sigma_s'^2) z,
    r = alpha_s/alpha_s'. gamma = 0 is deterministic (MeanFlow), 1 jumps to the data and restarts at each of the times (consistency models,
    2303.01469, algorithm 1), between them strategic stochastic sampling (TCD, 2402.19159, section 4.2; gamma 1 - sqrt(1 - g^2) here is g of CTM,
    2310.02279, algorithm 3). There is no noise in the last jump.
    times: decreasing, on the host; the last may be 0. key: where gamma is above 0, a single key or one per example; the noise of an example does not
    depend on its batch-mates. Compiled once per shape and number of jumps.
    Raises ValueError for times as `samplers.sample`, a gamma outside [0, 1], one above 0 without a key, and
    jumps of a consistency function that do not go to the data.
    """
    check_flow_map(flow_map, "jumps")
    x_T = checked(flow_map, x_T, "x_T", key)
    times = check_times(flow_map.sde, times)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma = {gamma}: expected 0 (deterministic) to 1 (restart from noised data)")
    if flow_map.final and gamma != 1 and len(times) > 2:
        raise ValueError(f"gamma = {gamma}: a consistency function jumps to the data alone; expected gamma = 1, or one jump")
    if gamma and key is None:
        raise ValueError(f"gamma = {gamma} is stochastic: pass key=jax.random.key(seed)")
    keys = example_keys(key, len(x_T)) if gamma else None
    rows = tuple(np.asarray(c, x_T.dtype) for c in coefficients(flow_map, times, gamma))
    return _run(flow_map, rows, x_T, keys)


def coefficients(flow_map: FlowMap, times: Float[np.ndarray, " n"], gamma: float):
    """In float64, [K] each: t, s', and (a, b, std) of x_s = a x_t + b F(x_t, t, s') + std z."""
    sde, t, s = flow_map.sde, times[:-1], times[1:]
    to = s - gamma * (s - times[-1])
    a, b = flow_map.combination(t, (sde.alpha(to), sde.sigma(to)))
    r = sde.alpha(s) / sde.alpha(to)
    std, noised = np.zeros(len(s)), to < s
    std[noised] = sde.sigma(s[noised]) * np.sqrt(-np.expm1(2 * (sde.log_snr(s[noised]) - sde.log_snr(to[noised]))))
    return t, to, r * a, r * b, std


@jax.jit
def _run(flow_map: FlowMap, rows, x, keys):
    def jump(x, row):
        k, (t, to, a, b, std) = row
        x = a * x + b * flow_map.raw(x, t, to)
        if keys is not None:
            x = x + std * jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), x.shape[1:], x.dtype))(keys)
        return x, None

    return jax.lax.scan(jump, x, (jnp.arange(len(rows[0])), rows))[0]
