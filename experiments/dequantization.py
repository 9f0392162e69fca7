r"""From discrete levels to the continuous data of a model: bounds on log P(level).

A level is a bin of x, of width 1/scale. For any density q on the bin, with the model's own density p,

    log P(level) = log \int_bin p(y) dy >= E_q[log p(y) - log q(y)],

and the log of the mean of K draws of p/q is nearer (IWAE, 1509.00519). A dequantization is such a q. The variational one is fitted to a run by

    python -m experiments.dequantization --workdir=runs/digits

which maximises the bound on the training split and writes WORKDIR/dequantization.npz.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import arrays, cli, data, runs
from experiments.data import Dataset
from experiments.kept import reserve
from models.dequantizer import Dequantizer
from sde_lib import SDE
from sde_lib.numerics import expand


class Dequantization(NamedTuple):
    """draw: (keys [B], values [B, ...]) -> y [B, ...] and what to add to log p(y) before `Dataset.score`, which itself adds the uniform density's
    -log q, [B]. eps: the time at which y is data of the model; None for the model's first. about: what a figure of it is reported with."""

    draw: Callable
    eps: float | None = None
    about: dict = {}


def uniform(run: runs.Run) -> Dequantization:
    """y = x, uniform on the bin (Theis et al. 2016, 1511.01844); the values themselves where they are continuous."""
    return Dequantization(lambda keys, values: (run.dataset.to_x(keys, values), jnp.zeros(len(values))))


def check_levels(dataset: Dataset, what: str) -> None:
    """Raise ValueError for continuous data."""
    if not dataset.levels:
        raise ValueError(f"{what} dequantization of {dataset.name}: its data are continuous; expected discrete levels")


def bin_time(dataset: Dataset, sde: SDE, tau: float = 3.0) -> float:
    """The time at which alpha x +- tau sigma is the bin about its middle x; not above 0 where the path has no so little noise."""
    return float(sde.time(np.log(2 * tau * dataset.scale)))


def truncated_normal(run: runs.Run, tau: float = 3.0) -> Dequantization:
    """y = alpha x + sigma eps about the middle x of the bin, eps normal cut off at +-tau (i-DODE, 2305.03935, section 3.3): the data as the model
    was trained on it, at the time when alpha x +- tau sigma is the bin. The bins tile y, so that eps is no truncation of the model here.

    Raises ValueError for data that are continuous, and for a path, or a learned schedule, with no so little noise.
    """
    dataset, sde = run.dataset, run.network.sde
    check_levels(dataset, "truncated-normal")
    eps = bin_time(dataset, sde, tau)
    if not 0 < eps < sde.T:
        raise ValueError(
            f"truncated-normal dequantization: {sde} never has a sigma/alpha of a bin's half / {tau:g} = {0.5 / dataset.scale / tau:.2g}"
        )
    if run.network.schedule is not None and eps < run.network.ends(run.params)[0]:
        raise ValueError(
            f"truncated-normal dequantization: a bin is +-{tau:g} sigma at log-SNR {sde.log_snr(eps):.2f}, but the model's schedule has learned to "
            f"begin at {sde.log_snr(run.network.ends(run.params)[0]):.2f}: pass --dequantization=uniform or --bound=variational"
        )
    alpha, sigma, inside = float(sde.alpha(eps)), float(sde.sigma(eps)), float(jax.scipy.special.erf(tau / np.sqrt(2)))

    def draw(keys, values):
        middle = dataset.middles(values)
        noise = jax.vmap(lambda k: jax.random.truncated_normal(k, -tau, tau, middle.shape[1:]))(keys)
        log_q = -0.5 * jnp.sum(noise**2, range(1, noise.ndim)) - dataset.dim * np.log(np.sqrt(2 * np.pi) * sigma * inside)
        return alpha * middle + sigma * noise, dataset.dim * np.log(dataset.scale) - log_q

    return Dequantization(draw, eps, {"tau": tau})


# --- the variational one ----------------------------------------------------------------------------------------------------------------

COMMAND = "python -m experiments.dequantization"


def from_flow(dataset: Dataset, params, keys, values):
    """y [B, ...] uniform noise of keys [B] moved by the flow, and log q(u) [B] of its place u in the bin."""
    noise = jax.vmap(lambda k: jax.random.uniform(k, values.shape[1:], minval=1e-6, maxval=1 - 1e-6))(keys)
    u, log_q = Dequantizer().apply(params, dataset.middles(values), noise)
    return (jnp.asarray(values, jnp.float32) + u - dataset.shift) / dataset.scale, log_q


def variational(run: runs.Run) -> Dequantization:
    """y from a flow q(u | level) that was fitted to the run (Ho et al. 2019, 1902.00275, section 3.1; ScoreFlow, 2101.09258, section 5).

    Raises FileNotFoundError, with the command that fits it, if there is none, and ValueError for continuous data and damaged files.
    """
    check_levels(run.dataset, "variational")
    path = run.workdir / "dequantization.npz"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: fit it with {COMMAND} --workdir={run.workdir}")
    example = jnp.zeros((1, *run.dataset.shape))
    like = jax.eval_shape(lambda: Dequantizer().init(jax.random.key(0), example, example))
    params, (fitted_to,) = arrays.load_params(path, like, ["fitted_to"], COMMAND)

    @jax.jit
    def draw(keys, values):
        y, log_q = from_flow(run.dataset, params, keys, values)
        return y, -log_q

    return Dequantization(draw, None, {"flow": hashlib.sha256(path.read_bytes()).hexdigest()[:12], "flow_fitted_to": str(fitted_to)})


def save(run: runs.Run, params) -> Path:
    """Write the flow's parameters to where `variational` finds them, with the weights that they were fitted to."""
    path = run.workdir / "dequantization.npz"
    arrays.save(path, params, fitted_to=f"{run.weights} weights of step {run.step}")
    return path


DEQUANTIZATIONS = {"uniform": uniform, "truncated_normal": truncated_normal, "variational": variational}


def fit(run: runs.Run, steps: int = 1000, batch: int = 64, learning_rate: float = 2e-3, seed: int = 0, log_every: int = 100, progress=print):
    """Parameters of a `Dequantizer` that maximise the bound of `variational` on the training split.

    The derivative of log p in y is its score: no ODE is solved. It is taken where a bin is +-3 sigma, or at the model's first time if that is later:
    nearer to the data a network's score has more error than sharpness, and any q makes a bound.
    """
    dataset, sde = run.dataset, run.network.sde
    check_levels(dataset, "variational")
    t = max(bin_time(dataset, sde), run.network.ends(run.params)[0])
    example = jnp.zeros((1, *dataset.shape))
    params = Dequantizer().init(jax.random.key(seed), example, example)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    key = jax.random.key(seed + 1)

    @jax.jit
    def update(den, params, state, batch):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])

        def loss(params):
            y, log_q = from_flow(dataset, params, keys, batch["value"])
            alpha = expand(sde.alpha(jnp.asarray(t, y.dtype)), y)
            slope = jax.lax.stop_gradient(alpha * den.score(alpha * y, t))  # d log p/dy
            return jnp.mean(log_q - jnp.sum(slope * y, range(1, y.ndim))), log_q.mean()

        grads, log_q = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, log_q

    state, clock = optimizer.init(params), time.perf_counter()
    for k, part in zip(range(1, steps + 1), data.batches(dataset, batch, seed)):
        den = run.denoiser(jax.tree.map(jnp.asarray, part["label"]) if run.conditional else None)
        params, state, log_q = update(den, params, state, part)
        if k % log_every == 0 or k == steps:
            if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((log_q, params))):
                raise FloatingPointError(f"the flow is not finite at step {k}: try a lower --learning_rate than {learning_rate:g}")
            left = (time.perf_counter() - clock) / k * (steps - k)
            progress(f"step {k}/{steps}  log2 q {float(log_q) / (dataset.dim * np.log(2)):.4f} a dimension  ETA {left:.0f} s", flush=True)
    return params


def main():
    f = flags.FLAGS
    for name in ("steps", "train_batch"):
        if f[name].value < 1:
            raise ValueError(f"--{name}={f[name].value}: expected at least 1")
    if not 0 < f.learning_rate < np.inf:
        raise ValueError(f"--learning_rate={f.learning_rate}: expected above 0")
    run = runs.from_flags()
    if run.lora:
        raise ValueError(f"--lora={run.lora[0]}: a flow is of the run's own weights; fit one of an export of the merged ones")
    settings = {"weights": run.fingerprint(), **{name: f[name].value for name in ("steps", "train_batch", "learning_rate", "seed")}}
    place = reserve(run.workdir / "dequantization", settings)
    path = save(run, fit(run, f.steps, f.train_batch, f.learning_rate, f.seed))
    place.write({"fitted_to": f"{run.weights} weights of step {run.step}"})
    print(f"wrote {path}, which experiments.likelihood --dequantization=variational uses")


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("steps", 1000, "Updates of the flow.")
    flags.DEFINE_float("learning_rate", 2e-3, "At the start; it falls to zero.")
    flags.DEFINE_integer("train_batch", 64, "Examples an update.")
    cli.run(main)
