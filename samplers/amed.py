r"""AMED-Solver and AMED-Plugin (Zhou et al. 2024, 2312.00094): two evaluations a step, the second where a small predictor says.

With y = x/alpha and s = sigma/alpha a step goes from s to s'. With the predictor's r, c and a of each example,

    m = s'^r s^(1-r),   y_m = y + (m - s) eps(y, s),   y' = y + c (s' - s) eps(y_m, a m)                      AMED-Solver
                        y_m = y + (m - s) E_1,         y' = y_m + c (m' - m) E_2,   m' = s'                    AMED-Plugin on iPNDM

where eps(y, s) = (y - D)/s is the noise prediction at x = alpha y. At the scaled time it is eps(y_m, a m) =
(y_m - D(y_m, a m))/(a m): it is divided by a m, where the paper's code divides by m. The two differ by the factor a of
the slope, which c can undo.

E_1 and E_2 being iPNDM's averages of the last evaluations. At r = 1/2 and c = a = 1 they are DPM-Solver-2 and iPNDM at 2N steps, and the
untrained predictor begins there; or at other middles, on which iPNDM may be better. Because the coefficients depend on x these are no tables; one
scan executes all steps all the same.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.checks import check_denoiser, checked
from samplers.solvers.adams import EQUAL_STEPS
from samplers.solvers.exponential import ddim
from samplers.solvers.steps import ratio
from samplers.table import check_times, sample
from sde_lib.denoiser import Denoiser
from sde_lib.numerics import expand
from sde_lib.sde import SDE

# (data prediction [B, ...], log-SNR of start [B] and end [B]) -> [B, 3] in (-1, 1), or None for the plain solver
Predictor = Callable

RANGES = {"ratio": 3.0, "direction": 0.1, "time": 0.1}  # of the logit of r, and of c and a about 1


class Steps(NamedTuple):
    """The steps of a grid, an entry each: s, s' (sigma/alpha), the logit of the plain r, and iPNDM's weights at both evaluations [N, 4]."""

    start: Float[np.ndarray, " n"]
    end: Float[np.ndarray, " n"]
    logit: Float[np.ndarray, " n"]
    first: Float[np.ndarray, "n 4"]
    second: Float[np.ndarray, "n 4"]


def steps_of(sde: SDE, times: np.ndarray, base: str, middles: np.ndarray | None = None) -> Steps:
    """Raises ValueError for a grid that begins at alpha = 0 or ends at sigma = 0, for middles that are not within its steps, and for another base
    than "midpoint" or "ipndm"."""
    if base not in ("midpoint", "ipndm"):
        raise ValueError(f"amed: base '{base}': expected midpoint (AMED-Solver) or ipndm (AMED-Plugin)")
    if sde.sigma(times[-1]) == 0:
        raise ValueError("amed: expected a grid that ends above sigma = 0")
    if len(times) < 2:
        raise ValueError("amed: expected two or more steps where alpha(T) = 0: the first is DDIM's")
    if middles is not None and (np.shape(middles) != (len(times) - 1,) or np.any(middles >= times[:-1]) or np.any(middles <= times[1:])):
        raise ValueError(f"amed: middles {middles}: expected one time within each of the {len(times) - 1} steps (but for one from alpha = 0)")
    s, log_snr = ratio(sde, times), sde.log_snr(times)
    r = 0.5 if middles is None else (sde.log_snr(middles) - log_snr[:-1]) / np.diff(log_snr)
    padded = lambda count: np.pad(EQUAL_STEPS[min(count, 4)], (0, 4 - min(count, 4)))
    n = len(times) - 1
    counts = [(2 * i + 1, 2 * i + 2) if base == "ipndm" else (1, 1) for i in range(n)]
    return Steps(s[:-1], s[1:], np.full(n, np.log(r) - np.log1p(-r)), *(np.stack([padded(c[j]) for c in counts]) for j in (0, 1)))


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
    r, c, a = jax.nn.sigmoid(row.logit + RANGES["ratio"] * raw[:, 0]), 1 + RANGES["direction"] * raw[:, 1], 1 + RANGES["time"] * raw[:, 2]
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


def every_second(grid: Callable, sde: SDE, steps: int, base: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"] | None]:
    """The times of so many steps, and the middles of all but one from alpha = 0: every second one of a grid of `samplers.grids` with a step for
    every evaluation, and those between, with which the plain plugin is iPNDM on that grid. None for the "midpoint" base: DPM-Solver-2 is of order 2
    with the geometric middles alone."""
    if sde.alpha(sde.T) > 0:
        fine = grid(sde, 2 * steps)
        times, middles = fine[::2], fine[1::2]
    else:
        fine = grid(sde, 2 * steps - 1)
        times, middles = np.append(fine[0], fine[1::2]), fine[2::2]
    return times, middles if base == "ipndm" else None


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
    middles: Float[np.ndarray, " m"] | None = None,
) -> Float[Array, "b ..."]:
    """Carry x_T [B, ...] from times[0] to times[-1] > 0; 2 evaluations a step (a step from alpha = 0 is DDIM's, with one).

    predictor: a `jax.tree_util.Partial` of (data prediction [B, ...], log-SNR of the step's start [B] and end [B]) -> [B, 3] in (-1, 1), which set
    r and c, a within 10 % of 1 (`RANGES`); the paper's sees the bottleneck of a U-Net, this one the denoised example, which every
    model has. None: the plain solver. base: "midpoint" (AMED-Solver) or "ipndm" (AMED-Plugin). middles: the time of the plain solver's second
    evaluation in each step but one from alpha = 0; None: the geometric mean of sigma/alpha, r = 1/2 (the paper's DPM-Solver-2).
    Raises ValueError for bad grids, middles and bases.
    """
    check_denoiser(den, "amed")
    x, times = checked(den, x_T, "x_T"), check_times(den.sde, times)
    x, times = leave_prior(den, x, times)
    rows = jax.tree.map(lambda c: np.asarray(c, x.dtype), steps_of(den.sde, times, base, middles))
    return den.sde.alpha(times[-1]) * follow(den, x / den.sde.alpha(times[0]), rows, predictor, base)
