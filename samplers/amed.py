r"""AMED-Solver and AMED-Plugin (Zhou et al. 2024, 2312.00094): two evaluations a step, the second where a small predictor says.

With y = x/alpha and s = sigma/alpha a step goes from s to s'. With the predictor's r, c and a of each example,

    m = s'^r s^(1-r),   y_m = y + (m - s) eps(y, s),   y' = y + c (s' - s) eps(y_m, a m)                      AMED-Solver
                        y_m = y + (m - s) E_1,         y' = y_m + c (m' - m) E_2,   m' = s'                    AMED-Plugin on iPNDM

E_1 and E_2 being iPNDM's averages of the last evaluations. At r = 1/2 and c = a = 1 they are DPM-Solver-2 and iPNDM at 2N steps. Because the
coefficients depend on x these are no tables; one scan executes all steps all the same.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.solvers.adams import EQUAL_STEPS
from samplers.solvers.exponential import ddim
from samplers.solvers.steps import ratio
from samplers.table import check_times, sample
from sde_lib.denoiser import Denoiser
from sde_lib.numerics import as_float, expand
from sde_lib.sde import SDE

# (data prediction [B, ...], log-SNR of start [B] and end [B]) -> [B, 3] in (-1, 1), or None for the plain solver
Predictor = Callable

RANGES = {"ratio": 0.45, "direction": 0.1, "time": 0.1}


class Steps(NamedTuple):
    """The steps of a grid, an entry each: s and s' (sigma/alpha), and iPNDM's weights at both evaluations [N, 4]."""

    start: Float[np.ndarray, " n"]
    end: Float[np.ndarray, " n"]
    first: Float[np.ndarray, "n 4"]
    second: Float[np.ndarray, "n 4"]


def steps_of(sde: SDE, times: np.ndarray, base: str) -> Steps:
    """Raises ValueError for a grid that begins at alpha = 0 or ends at sigma = 0, and for another base than "midpoint" or "ipndm"."""
    if base not in ("midpoint", "ipndm"):
        raise ValueError(f"amed: base '{base}': expected midpoint (AMED-Solver) or ipndm (AMED-Plugin)")
    if sde.sigma(times[-1]) == 0:
        raise ValueError("amed: expected a grid that ends above sigma = 0")
    if len(times) < 2:
        raise ValueError("amed: expected two or more steps where alpha(T) = 0: the first is DDIM's")
    s = ratio(sde, times)
    padded = lambda count: np.pad(EQUAL_STEPS[min(count, 4)], (0, 4 - min(count, 4)))
    n = len(times) - 1
    counts = [(2 * i + 1, 2 * i + 2) if base == "ipndm" else (1, 1) for i in range(n)]
    return Steps(s[:-1], s[1:], *(np.stack([padded(c[j]) for c in counts]) for j in (0, 1)))


def step(den: Denoiser, predictor: Predictor | None, base: str, carry, row: Steps):
    """One step of all examples. carry: y [B, ...] and the last three evaluations of eps [3, B, ...]."""
    (y, history), sde, batch = carry, den.sde, len(carry[0])
    each = lambda c: jnp.broadcast_to(jnp.asarray(c, y.dtype), (batch,))

    def evaluate(y, s):
        t = sde.time(-jnp.log(each(s)))
        data = den.data(expand(sde.alpha(t), y) * y, t)
        return data, (y - data) / expand(each(s), y)

    push = lambda eps, history: jnp.concatenate([eps[None], history[:-1]])
    average = lambda weights, eps, history: weights[0] * eps + jnp.tensordot(weights[1:], history, 1)
    data, eps = evaluate(y, row.start)
    raw = jnp.zeros((batch, 3), y.dtype) if predictor is None else predictor(data, each(-jnp.log(row.start)), each(-jnp.log(row.end)))
    r, c, a = 0.5 + RANGES["ratio"] * raw[:, 0], 1 + RANGES["direction"] * raw[:, 1], 1 + RANGES["time"] * raw[:, 2]
    middle = jnp.exp(r * jnp.log(row.end) + (1 - r) * jnp.log(row.start))
    y_m = y + expand(middle - row.start, y) * average(row.first, eps, history)
    scaled = jnp.clip(a * middle, row.end, row.start)
    _, eps_m = evaluate(y_m, scaled)
    if base == "midpoint":
        return y + expand(c * (row.end - row.start), y) * eps_m, history
    history = push(eps, history)
    y = y_m + expand(c * (row.end - middle), y) * average(row.second, eps_m, history)
    return y, push(eps_m, history)


@jax.jit(static_argnames="base")
def follow(den: Denoiser, y, rows: Steps, predictor: Predictor | None, base: str):
    """y = x/alpha after all steps, from y [B, ...]; differentiable in the predictor's parameters."""
    one = lambda carry, row: (step(den, predictor, base, carry, row), None)
    return jax.lax.scan(one, (y, jnp.zeros((3, *y.shape), y.dtype)), rows)[0][0]


def every_second(grid: Callable, sde: SDE, steps: int) -> Float[np.ndarray, " n"]:
    """The times of so many steps: every second one of a grid of `samplers.grids` with a step for every evaluation, so that the plain solver's
    second evaluation is about where that grid has one, and the DDIM step from alpha = 0 is no longer than a step of it."""
    if sde.alpha(sde.T) > 0:
        return grid(sde, 2 * steps)[::2]
    fine = grid(sde, 2 * steps - 1)
    return np.append(fine[0], fine[1::2])


def leave_prior(den: Denoiser, x, times: np.ndarray):
    """x and the times that are left: after a DDIM step where the grid begins at alpha = 0, else as they are."""
    return (sample(den, x, times[:2], ddim()), times[1:]) if den.sde.alpha(times[0]) == 0 else (x, times)


def evaluations(sde: SDE, times: np.ndarray) -> int:
    """Network evaluations of `amed` on a grid."""
    return 2 * (len(times) - 1) - int(sde.alpha(times[0]) == 0)


def amed(
    den: Denoiser,
    x_T: Float[Array, "b ..."],
    times: Float[np.ndarray, " n"],
    predictor: Predictor | None,
    base: Literal["midpoint", "ipndm"] = "midpoint",
) -> Float[Array, "b ..."]:
    """Carry x_T [B, ...] from times[0] to times[-1] > 0; 2 evaluations a step (a step from alpha = 0 is DDIM's, with one).

    predictor: a `jax.tree_util.Partial` of (data prediction [B, ...], log-SNR of the step's start [B] and end [B]) -> [B, 3] in (-1, 1), which set
    r in (0.05, 0.95) and c, a within 10 % of 1 (`RANGES`); the paper's sees the bottleneck of a U-Net, this one the denoised example, which every
    model has. None: the plain solver. base: "midpoint" (AMED-Solver) or "ipndm" (AMED-Plugin). Raises ValueError for bad grids and bases.
    """
    times, x = check_times(den.sde, times), as_float(x_T)
    x, times = leave_prior(den, x, times)
    rows = jax.tree.map(lambda c: np.asarray(c, x.dtype), steps_of(den.sde, times, base))
    return den.sde.alpha(times[-1]) * follow(den, x / den.sde.alpha(times[0]), rows, predictor, base)
