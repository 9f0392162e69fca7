"""A time grid fitted to a model: GITS (Chen et al. 2024, 2405.11326), by dynamic programming over the steps of one fine trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.checks import check_denoiser
from samplers.grids import karras
from samplers.solvers.runge_kutta import heun
from samplers.solvers.steps import jump
from samplers.table import sample
from sde_lib.denoiser import Denoiser


@jax.jit
def _costs(den, xs, times, steps):
    """[F + 1, F + 1] root mean square distance, in x/alpha, of a DDIM step from fine time i to j to the trajectory; steps: coefficients of it."""
    linear, p, alpha = steps

    def from_time(x, t, linear, p):
        data = den.data(x, t)
        ends = linear[(...,) + (None,) * x.ndim] * x + p[(...,) + (None,) * x.ndim] * data
        error = (ends - xs) / alpha[(...,) + (None,) * x.ndim]
        return jnp.sqrt(jnp.mean(error**2, range(1, error.ndim)))

    return jax.lax.map(lambda row: from_time(*row), (xs, times, linear, p))


def gits(den: Denoiser, x_T: Float[Array, "b ..."], n: int, fine: int = 60, gamma: float = 1.0, eps: float | None = None) -> np.ndarray:
    """n + 1 times from T to eps: those of the `fine` + 1 of a Karras grid whose DDIM steps have the least total error (GITS, algorithm 1).

    x_T: some 256 starts [B, ...], the trajectories of which are made by Heun's method. gamma: the weight of later costs, for each step taken
    (the authors' code has more than 1; with errors in x/alpha, as here, 1 was best). No training; 3 `fine` + 1 evaluations of B examples.
    The grid serves any solver. Raises ValueError if n is not in 1..fine.
    """
    check_denoiser(den, "gits")
    if not 1 <= n <= fine:
        raise ValueError(f"gits: {n} steps out of {fine}: expected 1 to {fine}")
    sde, times = den.sde, karras(den.sde, fine, eps)
    path = sample(den, x_T, times, heun("sigma"), path=True)
    rows = heun("sigma")(sde, times).nfe
    # rows of the path that end a step: after every second evaluation, but for a first step from alpha = 0
    ends = [0, *range(rows - 2 * (fine - 1), rows + 1, 2)]
    xs = path[np.array(ends)]
    coefficients = np.array([[jump(sde, t, s) if s < t else (0.0, 0.0) for s in times] for t in times])
    scale = np.maximum(sde.alpha(times), 1e-3)
    steps = tuple(np.asarray(c, xs.dtype) for c in (coefficients[..., 0], coefficients[..., 1], scale))
    cost = np.array(_costs(den, xs, np.asarray(times, xs.dtype), steps), np.float64)
    cost[np.tril_indices(fine + 1)] = np.inf
    left, goes = np.full(fine + 1, np.inf), []  # left: the least cost from each fine time to the end, in one step more each time
    left[-1] = 0.0
    for _ in range(n):
        total = cost + gamma * left
        goes.append(total.argmin(1))
        left = total.min(1)
    chosen = [0]
    for step in reversed(goes):
        chosen.append(int(step[chosen[-1]]))
    return times[chosen]
