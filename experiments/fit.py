"""Fit a solver to a trained model: python -m experiments.fit --workdir=runs/digits --solver=amed --steps=5

dpm_solver_v3: statistics l, s, b of the model (any number of steps). amed, amed_plugin: a step predictor, trained to follow a fine teacher trajectory
on the grid of so many steps. gits: the times of a grid of so many steps. Writes WORKDIR/solvers/NAME.npz, which experiments.sample --solver=NAME
(--grid=gits) finds.
"""

import functools
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.tree_util import Partial
from jaxtyping import Array, Float

from experiments import arrays, cli, runs
from experiments.guidance import guide
from experiments.kept import reserve, savez, short
from models.amed import StepPredictor
from samplers import amed, gits, grids, sample, solvers
from samplers.solvers import v3
from sde_lib import Denoiser

COMMAND = "python -m experiments.fit"
FITTED = ("dpm_solver_v3", "amed", "amed_plugin", "gits")
BASES = {"amed": "midpoint", "amed_plugin": "ipndm"}
OPTIONS = {  # flags of each, beside --guidance and --seed
    "dpm_solver_v3": ("examples", "knots"),
    "gits": ("steps", "examples"),
    **dict.fromkeys(BASES, ("steps", "grid", "examples", "iterations", "train_batch")),
}


def fit_predictor(
    den: Denoiser,
    x_T: Float[Array, "n ..."],
    times: Float[np.ndarray, " k"],
    base: str,
    middles: Float[np.ndarray, " m"] | None = None,
    iterations: int = 80,
    batch: int = 64,
    use_features: bool = True,
    inserted: int = 3,
    learning_rate: float = 5e-3,
    seed: int = 0,
):
    """Parameters of a `StepPredictor` for `times` and `middles` (of `amed.amed`), and the loss of each iteration (2312.00094, section 3.3).

    The teacher is DPM-Solver-2 with `inserted` more times in each step, from the pool x_T [n, ...]; the loss, the distance to it where both end.
    The paper trains each step on its own distance to the teacher: greedy steps made the multistep plugin worse than its base here, so all are
    trained together. A step from alpha = 0 has no predictor, but the others learn to make up for its error.
    """
    sde, every = den.sde, times
    start, times = amed.leave_prior(den, x_T, times)
    steps = jax.tree.map(lambda c: jnp.asarray(c, x_T.dtype), amed.steps_of(sde, times, base, middles))
    log_snr = sde.log_snr(times)
    fine = np.concatenate([np.linspace(a, b, inserted + 1, endpoint=False) for a, b in zip(log_snr[:-1], log_snr[1:])])
    fine = np.append(sde.time(fine), times[-1])
    fine[0] = times[0]
    if len(every) > len(times):  # the teacher leaves alpha = 0 in small steps too
        fine = np.concatenate([np.linspace(*every[:2], 4 * (inserted + 1), endpoint=False), fine])
    x_0 = sample(den, x_T, fine, solvers.dpm_solver(2))
    teacher = jnp.stack([start / sde.alpha(times[0]), x_0 / sde.alpha(times[-1])])
    params = StepPredictor(use_features=use_features).init(jax.random.key(seed), x_T[:1], jnp.zeros(1), jnp.zeros(1))
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, iterations))

    @jax.jit
    def update(den, params, opt_state, teacher):
        def loss(params):
            y = amed.follow(den, teacher[0], steps, predictor(params, use_features), base)
            return jnp.mean(jnp.sqrt(jnp.mean((y - teacher[1]) ** 2, range(1, y.ndim))))

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, rng, losses = optimizer.init(params), np.random.default_rng(seed), []
    for _ in range(iterations):
        index = rng.choice(len(x_T), min(batch, len(x_T)), replace=False)
        chosen = replace(den, cond=jax.tree.map(lambda c: c[index], den.cond))  # noqa: B023
        params, opt_state, value = update(chosen, params, opt_state, teacher[:, index])
        losses.append(float(value))
    return params, losses


def predictor(params, use_features: bool = True) -> Partial:
    """The `amed.Predictor` of fitted parameters."""
    return Partial(_apply(use_features), params)


@functools.cache
def _apply(use_features: bool):
    """One function for all predictors of a kind: another one would be compiled anew."""
    return StepPredictor(use_features=use_features).apply


def load_predictor(path: Path, shape: tuple[int, ...]):
    """Parameters of a `StepPredictor`, times and middles (None: none) of a file, for examples of `shape`."""
    like = jax.eval_shape(lambda: StepPredictor().init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1)))
    params, (times, middles) = arrays.load_params(path, like, ["times", "middles"], COMMAND)
    return params, times, middles if len(middles) else None


def load_times(path: Path) -> np.ndarray:
    """The times of a GITS grid in a file."""
    return arrays.load(path, ["times"], COMMAND)[0]


def statistics(path: Path) -> v3.Statistics:
    """The statistics of DPM-Solver-v3 in a file."""
    return v3.Statistics(*arrays.load(path, ["log_snr", "l", "s", "b"], COMMAND))


def file_of(workdir: str | Path, solver: str, steps: int, guidance: float = 1.0) -> Path:
    """Where a solver that was fitted to the model with that guidance is; statistics serve any number of steps."""
    name = (solver if solver == "dpm_solver_v3" else f"{solver}_{steps}") + (f"_guidance{short(guidance)}" if guidance != 1 else "")
    return Path(workdir) / "solvers" / f"{name}.npz"


def fitted(workdir: str | Path, solver: str, steps: int, guidance: float = 1.0) -> Path:
    """The file of a fitted solver. Raises FileNotFoundError, with the command that makes it, if it is not there."""
    path = file_of(workdir, solver, steps, guidance)
    if not path.exists():
        guided = f" --guidance={short(guidance)}" if guidance != 1 else ""
        raise FileNotFoundError(f"no {path}: fit it with {COMMAND} --workdir={workdir} --solver={solver} --steps={steps}{guided}")
    return path


def check_finite(run: runs.Run, solver: str, *fitted) -> None:
    """Raise FloatingPointError, before a file is written, if a fitted number is not finite."""
    if not all(np.isfinite(part).all() for part in fitted):
        raise FloatingPointError(f"{solver} fitted to {run.workdir} is not finite, nothing is written: is the model trained, and its weights finite?")


def write(
    run: runs.Run,
    solver: str,
    steps: int = 6,
    guidance: float = 1.0,
    grid: str = "cosine",
    examples: int = 512,
    knots: int = 60,
    iterations: int = 80,
    train_batch: int = 64,
    seed: int = 0,
) -> Path:
    """Fit `solver` to the run's model and write its file, which is returned. Arguments: as the flags of this command.

    Raises ValueError for DPM-Solver-v3 of an interpolant, for a run with an adapter added, for guidance that the model has not, and where a fit of
    other settings or weights is.
    """
    shape, sde = run.dataset.shape, run.network.sde
    if run.lora:
        raise ValueError(f"--lora={run.lora[0]}: a fit is of the run's own weights; fit an export of the merged ones")
    if run.network.interpolant is not None and solver == "dpm_solver_v3":
        raise ValueError(
            f"--solver=dpm_solver_v3 of an interpolant: its statistics are of x_0 with the prior's noise alone; expected {', '.join(FITTED[1:])}"
        )
    guided = guide(run, guidance)
    den = guided.denoiser(run.labels(examples))
    path = file_of(run.workdir, solver, steps, guidance)
    options = {"grid": grid, "examples": examples, "knots": knots, "iterations": iterations, "train_batch": train_batch}
    used = {name: options[name] for name in OPTIONS[solver] if name in options}
    place = reserve(path.with_suffix(""), {"weights": run.fingerprint(), "seed": seed, **used})
    path.parent.mkdir(exist_ok=True)
    clock = time.perf_counter()
    x_T = run.network.prior_sample(jax.random.key(seed), (examples, *shape))
    if solver == "dpm_solver_v3":
        values = run.dataset.values["train"][:examples]
        x0 = run.dataset.to_x(jax.random.split(jax.random.key(seed), len(values)), values)
        labels = jax.tree.map(lambda a: jnp.asarray(a[: len(values)]), run.dataset.labels["train"])
        labelled = guided.denoiser(labels if run.conditional else None)
        times = grids.log_snr(sde, knots)
        measured = v3.estimate(labelled, x0, jax.random.key(seed + 1), sde.log_snr(times[1:] if sde.alpha(sde.T) == 0 else times))
        check_finite(run, solver, *vars(measured).values())
        savez(path, **vars(measured))
    elif solver == "gits":
        times = gits(den, x_T, steps - 1)
        check_finite(run, solver, times)
        savez(path, times=times)
    else:
        times, middles = amed.every_second(getattr(grids, grid), sde, steps - 1, BASES[solver])
        params, losses = fit_predictor(den, x_T, times, BASES[solver], middles, iterations, train_batch, seed=seed)
        check_finite(run, solver, losses, *jax.tree.leaves(params))
        arrays.save(path, params, times=times, middles=[] if middles is None else middles)
        print(f"distance to the teacher {np.mean(losses[:5]):.4f} -> {np.mean(losses[-5:]):.4f}")
    place.write({"solver": solver, "steps": steps, "guidance": guidance})
    print(f"fitted {solver} in {time.perf_counter() - clock:.0f} s")
    return path


def main():
    f = flags.FLAGS
    for name in {name for names in OPTIONS.values() for name in names} - {*OPTIONS[f.solver]}:
        if f[name].present:
            raise ValueError(f"--{name}={f[name].value}: --solver={f.solver} has no such option; it has {', '.join(OPTIONS[f.solver])}")
    for name, least in {"steps": 2, "examples": 1, "knots": 3, "iterations": 1, "train_batch": 1}.items():
        if f[name].value < least:
            raise ValueError(f"--{name}={f[name].value}: expected at least {least}")
    options = {name: f[name].value for name in ("steps", "guidance", "grid", "examples", "knots", "iterations", "train_batch", "seed")}
    print(f"wrote {write(runs.from_flags(), f.solver, **options)}")


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_enum("solver", None, FITTED, "What to fit.", required=True)
    flags.DEFINE_integer("steps", 6, "Steps as in experiments.sample, the last of which denoises (amed: two evaluations each but for the last).")
    flags.DEFINE_enum("grid", "cosine", ["cosine", "uniform", "quadratic", "karras", "log_snr"], "amed: the grid whose steps are fitted.")
    flags.DEFINE_float("guidance", 1.0, "Classifier-free guidance of the model that is fitted to: that of experiments.sample --guidance.")
    flags.DEFINE_integer("examples", 512, "Examples to fit on.")
    flags.DEFINE_integer("knots", 60, "dpm_solver_v3: values of log-SNR at which the statistics are taken.")
    flags.DEFINE_integer("iterations", 80, "amed: updates of every step's predictor.")
    flags.DEFINE_integer("train_batch", 64, "amed: examples an update.")
    cli.run(main)
