r"""Progressive distillation (Salimans & Ho 2022, 2202.00512): one DDIM step of the student from t to t'' does what two of its teacher do, through t',

    x~ = (x_{t''} - (sigma''/sigma) x_t)/(alpha'' - alpha sigma''/sigma),        L = max(SNR, 1) mean (D(x_t, t) - x~)^2     (algorithm 2, eq. 8-9)

at t = T i/N, i = 1..N, t'' = T (i - 1)/N, t' midway; x~ is a mean of the teacher's own two, D(x_t, t) and D(x_t', t'), and computed as that: the
difference has few digits where N is large. A student of N steps teaches one of N/2: `experiments.distill` halves from `start` to `steps`, each in a
folder of its own, WORKDIR/steps_N. It is sampled at the times that it was trained at, `--solver=ddim --grid=few --steps=N`.
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


def check(objective: ConfigDict) -> None:
    """Raise ValueError for numbers of steps that no halving connects, and for a weighting."""
    start, steps = objective.progressive.start, objective.progressive.steps
    if steps < 1 or start < steps or start % steps or (start // steps) & (start // steps - 1):
        raise ValueError(f"config.objective.progressive.start = {start}, steps = {steps}: expected steps times 1, 2, 4, 8, ...")
    if objective.weighting != "own" or objective.time.name != "uniform":
        raise ValueError("config.objective.loss = 'progressive' has its own: leave objective.weighting and objective.time.name out")


def rounds(config: ConfigDict, workdir: str | Path):
    """(config, workdir) of each round."""
    steps = config.objective.progressive.start
    while steps >= config.objective.progressive.steps:
        own = config.copy_and_resolve_references()
        own.objective.progressive.update(start=steps, steps=steps)
        folder = Path(workdir) / f"steps_{steps}"
        yield own, folder
        config = config.copy_and_resolve_references()
        config.teacher.update(workdir=str(folder), guidance=1.0)  # the first student is guided for good
        steps //= 2


def target(teacher: Denoiser, steps: int, x_t: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """x~ of each example; t [B]: of the times of N = `steps`."""
    sde, ends = teacher.sde, np.arange(2 * steps, -1, -1) * teacher.sde.T / (2 * steps)
    tables = [mean(sde, *ends[i : i + 3]) for i in range(0, 2 * steps, 2)]
    index = jnp.round((1 - t / sde.T) * steps).astype(int)
    return jax.lax.stop_gradient(execute(teacher, by_example(tables, index, x_t), x_t, None)[0])


def mean(sde: SDE, t: float, middle: float, s: float) -> Table:
    """x~ of DDIM's steps from t to middle to s."""
    ratio, first = jump(sde, t, middle)
    last_ratio, last = jump(sde, middle, s)
    both = last_ratio * first + last
    return stack([Row(t, {0: ratio}, {0: first}), Row(middle, {}, {0: last / both, 1: last_ratio * first / both})], "data")


def loss(
    student: Denoiser, teacher: Denoiser, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], u: Float[Array, " b"], options: ConfigDict
) -> Float[Array, " b"]:
    """The loss of each example, [B]; u [B]: uniform in (0, 1), of its time."""
    sde, steps = student.sde, options.steps
    t = (sde.T * (1 + jnp.minimum(jnp.floor(u * steps), steps - 1)) / steps).astype(x0.dtype)
    x_t = expand(sde.alpha(t), x0) * x0 + expand(sde.sigma(t), x0) * noise
    error = student.data(x_t, t) - target(teacher, steps, x_t, t)
    return jnp.maximum(jnp.exp(2 * sde.log_snr(t)), 1.0) * jnp.mean(error**2, range(1, x0.ndim))
