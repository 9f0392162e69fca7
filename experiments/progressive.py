r"""Progressive distillation (Salimans & Ho 2022, 2202.00512): one DDIM step of the student is two of its teacher, again and again.

At a time t = T i/N of the student's N steps, with t' = t - T/2N and t'' = t - T/N, the teacher's two steps lead from x_t to x_t'', and so does one
with the data prediction (algorithm 2)

    x~ = (x_t'' - (sigma''/sigma_t) x_t)/(alpha'' - alpha_t sigma''/sigma_t),

which is a mean of the teacher's own two, D(x_t, t) and D(x_t', t'), without that difference. The student regresses on it, with weighting
"truncated_snr", max(SNR, 1), or, on a path of unit variance, "v", SNR + 1 (section 4). The rounds, of N from `first` down to
`config.objective.time.count`, halved from each to the next, whose teacher the one before is, are those of `experiments.distill`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from samplers.solvers.steps import jump
from samplers.table import Row, Table, by_example, execute, stack
from sde_lib import SDE, Denoiser
from sde_lib.numerics import expand


def rounds(objective: ConfigDict) -> list[int]:
    """The numbers of steps N of the students, each half of the one before. Raises ValueError where halving does not end at the last."""
    first, last, of = objective.progressive.first, objective.time.count, "config.objective"
    if objective.time.name != "grid":
        raise ValueError(f"{of}.time.name = '{objective.time.name}': of loss 'progressive' expected grid, its count being the last student's steps")
    counts = [first >> i for i in range(first.bit_length()) if first >> i >= max(last, 1)]
    if not counts or counts[-1] != last or first != last << (len(counts) - 1):
        raise ValueError(f"{of}.progressive.first = {first}, time.count = {last}: expected the second, at least 1, times a power of 2 as the first")
    return counts


def round_of(config: ConfigDict, count: int, teacher: str | Path) -> ConfigDict:
    """The config of one round, taught by the run `teacher`, which is guided in the first alone."""
    of = config.copy_and_resolve_references()
    of.objective.time.count, of.teacher.workdir = count, str(teacher)
    of.training.steps *= config.objective.progressive.longer if count <= 2 else 1
    of.teacher.guidance = config.teacher.guidance if count == config.objective.progressive.first else 1.0
    return of


def table(sde: SDE, t: float, middle: float, s: float) -> Table:
    """x~ of a teacher's DDIM steps from t to middle to s: D(x_t, t) and D(x_middle, middle) in a mean whose one step from t leads where both do."""
    r, first = jump(sde, t, middle)
    r_last, last = jump(sde, middle, s)
    whole = r_last * first + last
    return stack([Row(t, {0: r}, {0: first}), Row(middle, {}, {0: last / whole, 1: r_last * first / whole})], "data")


def pair(teacher: Denoiser, count: int, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> tuple[Array, Array]:
    """(x~, eps~), [B, ...] each, with x = alpha x~ + sigma eps~ [B, ...] at t [B], one of the times at which `count` steps begin."""
    sde = teacher.sde
    times = sde.T * np.arange(2 * count + 1) / (2 * count)
    tables = [table(sde, *times[[i, i - 1, i - 2]]) for i in range(2, 2 * count + 1, 2)]
    data, _ = execute(teacher, by_example(tables, jnp.round(t / sde.T * count).astype(int) - 1, x), x, None)
    data = jax.lax.stop_gradient(data)
    return data, (x - expand(sde.alpha(t), x) * data) / expand(sde.sigma(t), x)
