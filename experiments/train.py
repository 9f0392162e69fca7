"""Train a model: python -m experiments.train --config=configs/digits.py --workdir=runs/digits [--config.training.steps=...]

The same command again resumes from the newest checkpoint and ends with the bit-identical state that an uninterrupted run has (on as many devices).
The workdir gets config.json (`experiments.drift` says what of it may change), checkpoints/<step>/, log.jsonl and TensorBoard events.
--config.lora.rank=8 --config.lora.base=runs/digits trains a low-rank adapter of that run's weights, which get to base/; checkpoints then hold the
adapter alone. Several processes, on several hosts, train one run together (see `experiments.hosts`).
"""

import json
import shutil
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict, config_flags

from experiments import (
    cli,
    couplings,
    data,
    drift,
    export,
    guidance,
    hosts,
    network,
    objectives,
    parallel,
    plots,
    ranges,
    runs,
    sources,
    state,
    weights,
)
from experiments.checkpoints import Checkpoints
from experiments.writers import MetricWriter

NONFINITE = "nonfinite.jsonl"
IDLE = 10  # steps in a row that may be skipped


def train(config: ConfigDict, workdir: str | Path, stop=False, allow_drift: bool = False) -> state.TrainState:
    """Train until config.training.steps, resuming if `workdir` has checkpoints; returns the final state.

    stop: truthy once the run should save and leave (see `cli.StopSignal`). allow_drift: resume with a config that changes the result (see
    `experiments.drift`). Raises ValueError for configs that cannot be run, FloatingPointError when the loss, its gradient or the weights are not
    finite (nothing is saved then), OSError if a checkpoint cannot be saved, cli.Stopped when stopped.
    """
    workdir = Path(workdir)
    ranges.check(config)
    parallel.check_batch(config.training.batch, "config.training.batch", config.training.accumulate)
    if (workdir / weights.SAID).exists():
        raise ValueError(f"--workdir={workdir} is an export, not a run: name another folder")
    resuming = bool(Checkpoints(workdir / "checkpoints", keep=None).steps())
    config = drift.completed(config, workdir) if resuming else config
    dataset = read(config, workdir)
    check_used(config, dataset)
    net = network.from_config(config, dataset.num_classes, dataset.embeddings)
    objectives.check(net, dataset, config.objective)
    couple = couplings.from_config(config, dataset, net, jax.process_count())
    divided = parallel.divided if config.training.sharding == "fsdp" else None
    make = partial(state.init, config, net, dataset.shape, divided)
    current = make() if divided else jax.eval_shape(make)  # shapes alone as long as there may be a checkpoint; but they tell no shardings
    check_references(config)
    initial = {} if resuming else initial_arrays(config, current.params)
    if not resuming:
        frozen(config, net, dataset, *references(config))  # its checks
    workdir.mkdir(parents=True, exist_ok=True)

    keep, every = config.training.keep, config.training.keep_every
    with Checkpoints(workdir / "checkpoints", keep, every) as checkpoints, MetricWriter(workdir) as writer:
        checkpoints.expected()
        examined = drift.examined(dataset)
        changes = drift.check(config, workdir, examined, allow_drift) if resuming else []
        if isinstance(dataset, data.Latents):
            runs.same_latents(workdir, dataset)
            if hosts.writes():
                (workdir / sources.LATENTS).write_text(json.dumps({name: dataset.about[name] for name in runs.LATENTS_ARE}))
        start, steps = 0, config.training.steps
        if resuming:
            current = checkpoints.restore(current)
            start = int(current.step)
            print(f"resumed from step {start}")
            changes = drift.changes_of_batch(config, workdir, start, changes)
        if hosts.writes() and start <= steps:
            drift.record(config, workdir, examined, start, changes)  # now that the checkpoint is known to fit
        if start >= steps:
            print(f"nothing to train: config.training.steps = {steps}", flush=True)
            if hosts.writes():
                plots.loss_curve(workdir)
            return current
        fixed = frozen(config, net, dataset, *kept(config, workdir, resuming))
        if not resuming:
            current = begun(current if divided else make(), initial)
        step_fn = parallel.training_step(config, net, dataset, fixed)
        if config.training.sharding == "data" and jax.process_count() == 1:
            current = parallel.replicate(current)  # as the step returns it, or the second step would be compiled again
        size = sum(a.size for name, of in current.params.items() if name != "discriminator" for a in jax.tree.leaves(of))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        of = " of an adapter" if config.lora.rank else ""
        if dataset.reading:
            print(f"{dataset.name}: {dataset.reading}")
        print(f"{dataset.name}: {len(dataset.values['train'])} training examples; {size:,} parameters{of}; {devices}")
        print("compiling ...", flush=True)

        stretch = drift.stretch(workdir, start, changes)
        source = data.Batches(dataset, config.training.batch, config.seed, stretch=stretch)
        couple = couple and replace(couple, stretch=stretch)
        pending, unlogged, idle, clock, since = [], [], 0, time.perf_counter(), start
        for k, batch in zip(range(start, steps), data.batches(dataset, config.training.batch, config.seed, start, couple, stretch)):
            current, metrics = step_fn(current, batch)
            pending.append(metrics)
            jax.block_until_ready(pending[-3:][0])  # not further ahead, or a signal would wait for all that has been asked for
            done = k + 1
            first = done == start + 1
            if first:  # the first step compiles: the speed is of the others
                jax.block_until_ready(metrics)
                print(f"compiled in {time.perf_counter() - clock:.1f} s", flush=True)
                clock, since = time.perf_counter(), done
            logging = done % config.training.log_every == 0 or done == steps
            stopping = hosts.stopping(stop, done)  # asked once a step: a signal may come between two questions
            saving = done % config.training.checkpoint_every == 0 or done == steps or stopping
            if first or logging or saving:
                found = examine(pending, done, source, workdir)
                for values in found:
                    idle = idle + 1 if values.get("skipped") else 0
                if idle >= IDLE:
                    raise FloatingPointError(
                        f"the last {idle} steps were not finite and all skipped: stopped. Try a lower config.optim.learning_rate"
                    )
                pending, unlogged = [], unlogged + found
                checkpoints.check()
            if logging:
                values, rate = means(unlogged), (done - since) / (time.perf_counter() - clock)
                unlogged = []
                clock, since = time.perf_counter(), done
                writer.write(done, **values, steps_per_second=rate)
                eta = (steps - done) / rate if rate else 0.0
                text = "  ".join(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
                print(f"step {done}/{steps}  {text}  {rate:.1f} steps/s  ETA {eta // 60:.0f}:{eta % 60:02.0f}", flush=True)
            if saving:
                if name := not_finite(current):
                    raise FloatingPointError(f"{name} is not finite at step {done}: stopped, checkpoints before it are kept")
                checkpoints.save(current)
            if stopping and done < steps:
                checkpoints.wait()
                by = getattr(stop, "name", "request") or "SIGTERM"  # of several processes another may have heard it
                raise cli.Stopped(f"stopped by {by} at step {done}, which is saved: the same command resumes")
    if hosts.writes():
        plots.loss_curve(workdir)
    hosts.barrier("trained")
    return current


def read(config: ConfigDict, workdir: Path) -> data.Dataset:
    """The data of `config`; of a run that is resumed, read as they were at its start unless an option of the reading changes. Raises what
    `data.load` raises."""
    if not any((workdir / "checkpoints").glob("[0-9]*")) or not (workdir / "config.json").exists():
        return data.load(config.data)
    before = cli.load_config(workdir).data
    same = all(before.get(name) == config.data.get(name) for name in ("name", *data.READING))
    return data.load(config.data, weights.facts(workdir) if same else None)


def check_used(config: ConfigDict, dataset: data.Dataset) -> None:
    """Raise ValueError for embeddings in the data that the network does not take, which would then train without them."""
    if dataset.embeddings and not config.model.embeddings:
        raise ValueError(
            f"config.data.path = '{config.data.path}' has tokens and pooled, which config.model.name = '{config.model.name}' does not use: expected "
            f"an MMDiT with --config.model.embeddings='{dataset.embeddings}', or data without them"
        )


def check_references(config: ConfigDict) -> None:
    """Raise ValueError for an adapter without a base, a teacher without a use, a loss without its teacher, and for either in several processes."""
    name, taught = config.lora.base, config.teacher.workdir
    if bool(config.lora.rank) != bool(name):
        raise ValueError(f"config.lora.rank = {config.lora.rank} and config.lora.base = '{name}': expected both, or neither (0 and '')")
    if distils(config.objective) != bool(taught):
        of = f"config.objective.loss = '{config.objective.loss}', config.teacher.workdir = '{taught}'"
        raise ValueError(f"{of}: expected a teacher (experiments.distill) of perflow, progressive, add, and by their step consistency and scm, alone")
    if (name or taught) and jax.process_count() > 1:
        raise ValueError(f"config.lora.base = '{name}', teacher.workdir = '{taught}': expected one process, there are {jax.process_count()}")


def references(config: ConfigDict) -> tuple[runs.Run | None, runs.Run | None]:
    """The runs that `config.lora.base` and `config.teacher.workdir` name, as they are now; None for one that is not named."""
    return tuple(runs.load_run(name) if name else None for name in (config.lora.base, config.teacher.workdir))


def kept(config: ConfigDict, workdir: Path, resuming: bool) -> tuple[runs.Run | None, runs.Run | None]:
    """The `references` as they were when this run began: exports of their averaged weights, in the workdir, which are made unless `resuming`."""
    found = []
    for name, copy in ((config.lora.base, workdir / runs.BASE), (config.teacher.workdir, workdir / runs.TEACHER)):
        if name and not resuming:
            if (copy / weights.SAID).exists():  # of a run that was stopped before its first checkpoint
                shutil.rmtree(copy)
            with tempfile.TemporaryDirectory(dir=workdir, suffix=".tmp") as temporary:
                export.write(name, Path(temporary) / copy.name, which=("ema",))
                (Path(temporary) / copy.name).rename(copy)
        found.append(runs.load_run(copy) if name else None)
    return tuple(found)


def check_alike(what: str, given: network.Network, net: network.Network, fields: tuple[str, ...]) -> None:
    """Raise ValueError, beginning with `what`, if one of the `fields` of two networks differs."""
    for field in fields:
        theirs, ours = getattr(given, field, None), getattr(net, field, None)
        if theirs != ours:
            raise ValueError(f"{what} was trained with {field} = {theirs}, this config has {ours}: expected the same")


def frozen(config: ConfigDict, net: network.Network, dataset: data.Dataset, base: runs.Run | None, teacher: runs.Run | None) -> state.Frozen:
    """The averaged weights of the run `base`, which an adapter is trained on, and the model of the run `teacher`, if any.

    Raises ValueError if the weights are of another network, or either is of another path, prediction or examples.
    """
    params, model, features, shape = None, None, None, dataset.shape
    if base is not None:
        name = f"config.lora.base = {config.lora.base}"
        check_alike(name, base.network, net, ("sde", "kind", "sigma_data", "clock"))
        like = jax.eval_shape(lambda: net.init(jax.random.key(0), shape))
        weights.check(flatten_dict(base.params, sep="/"), flatten_dict(like, sep="/"), f"{name} is not of this config's network")
        check_space(base.dataset, dataset, name)
        params = base.params
    if teacher is not None:
        name = f"config.teacher.workdir = {config.teacher.workdir}"
        check_alike(name, teacher.network, net, ("sde", "none"))
        if couplings.coupled(teacher.config.coupling) or teacher.network.interpolant is not None or teacher.config.data.name == "pairs":
            raise ValueError(
                f"{name} was trained on noise that is joined with the data, is data, or lies beside both ends: it is "
                "asked at data with independent noise, which it has not seen; expected a teacher without coupling, or pairs of it"
            )
        if teacher.dataset.shape != shape:
            raise ValueError(f"{name} is of examples {teacher.dataset.shape}: expected those of config.data, {shape}")
        check_space(teacher.dataset, dataset, name)
        high = config.objective.consistency.omega[1]
        if high and config.teacher.guidance != 1:
            raise ValueError(
                f"config.teacher.guidance = {config.teacher.guidance} beside objective.consistency.omega, by which it is guided: expected 1"
            )
        if high:
            guidance.guide(teacher, high)  # its checks
        model = replace(guidance.guide(teacher, config.teacher.guidance).denoiser(teacher.labels(1)), cond=None)
        if net.discriminator is not None:
            features = jax.tree_util.Partial(teacher.network.features, teacher.params)
            seen = lambda of: [a.shape for a in jax.eval_shape(lambda: of.features(of.init(jax.random.key(0), shape), *one))]
            one = jnp.zeros((1, *shape)), jnp.ones(1)
            if seen(teacher.network) != seen(net):
                raise ValueError(f"{name}: its features are not of the shapes of config.model's; expected a like network")
    return state.Frozen(params, model, features)


def check_space(theirs: data.Dataset, ours: data.Dataset, what: str) -> None:
    """Raise ValueError if x of two data sets stand for different numbers: by a percent of a standard deviation, or more."""
    of_pairs = lambda dataset: dataset.of if isinstance(dataset, data.Pairs) else dataset
    theirs, ours = of_pairs(theirs), of_pairs(ours)
    (their_shift, their_scale), (our_shift, our_scale) = theirs.affine, ours.affine
    if not np.all(np.abs(their_shift - our_shift) <= 0.01 * our_scale) or not np.allclose(their_scale, our_scale, rtol=0.01, atol=0):
        raise ValueError(f"{what} was trained on {theirs.space}, config.data are {ours.space}: expected the same (config.data.standardize, levels)")


def distils(objective: ConfigDict) -> bool:
    """Whether the loss has a teacher."""
    by_step = objective.loss in ("consistency", "scm") and objective[objective.loss].step != "data"
    return by_step or objective.loss in ("perflow", "progressive", "add")


def initial_arrays(config: ConfigDict, params) -> dict[str, jax.Array]:
    """The averaged weights of `config.training.init` that have the names and shapes of `params`, by name; none without an init.

    Raises ValueError for "teacher" without one, and where none fit.
    """
    name = config.teacher.workdir if config.training.init == "teacher" else config.training.init
    if not config.training.init:
        return {}
    if not name or config.lora.rank:
        raise ValueError(f"config.training.init = '{config.training.init}': expected a workdir, a teacher if 'teacher', and no adapter (lora.base)")
    run = runs.load_run(name)
    theirs, ours = (flatten_dict(tree, sep="/") for tree in (run.params, params))
    own = lambda key: key.startswith("uncertainty/") and run.config.objective.loss != config.objective.loss  # of another loss
    fits = {key: leaf for key, leaf in theirs.items() if key in ours and ours[key].shape == leaf.shape and not own(key)}
    if not fits:
        raise ValueError(f"config.training.init = {name}: none of its arrays is one of config.model's; expected a run of a like network")
    print(f"begins from {len(fits)} of the {len(ours)} arrays of {name}")
    return fits


def begun(current: state.TrainState, initial: dict[str, jax.Array]) -> state.TrainState:
    """A new state with the `initial` arrays in the place of its own, raw and averaged."""
    if not initial:
        return current
    ours = flatten_dict(current.params, sep="/")
    new = lambda: unflatten_dict({key: jnp.array(initial.get(key, leaf), leaf.dtype, copy=True) for key, leaf in ours.items()}, sep="/")
    placed = lambda params: jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), params, current.params)
    target = None if current.target is None else placed(new())
    return current.replace(params=placed(new()), ema=placed(new()), target=target)


def examine(pending: list, step: int, source: data.Batches, workdir: Path) -> list[dict[str, float]]:
    """The numbers of the steps up to `step`, from their metrics (see `state.make_step`).

    Of a step that is not finite nonfinite.jsonl tells its number, the examples of its batch, by their place in the training data, and those among
    them whose own loss is not finite; once, however often a resumed run comes by. Raises FloatingPointError unless it was skipped.
    """
    pending = jax.device_get(pending)
    found = [{name: float(value) for name, value in metrics.items() if name != "finite"} for metrics in pending]
    for at, metrics, values in zip(range(step - len(pending) + 1, step + 1), pending, found):
        wrong = next((name for name, value in values.items() if not np.isfinite(value)), None)
        if wrong is None:
            continue
        index = source.index(source.positions(at - 1))
        told = {"step": at, **{name: value if np.isfinite(value) else str(value) for name, value in values.items()}}
        told |= {"not_finite": index[~np.asarray(metrics["finite"])].tolist(), "batch": index.tolist()}
        if hosts.writes():
            line = json.dumps(told) + "\n"
            with open(workdir / NONFINITE, "a+") as log:
                log.seek(0)
                if line not in log.readlines():
                    log.write(line)
        if not values.get("skipped"):
            raise FloatingPointError(
                f"{wrong} is {values[wrong]} at step {at}: stopped, checkpoints before it are kept; {workdir / NONFINITE} names the examples. "
                "Try a lower config.optim.learning_rate"
            )
    return found


def means(found: list[dict[str, float]]) -> dict[str, float]:
    """Of each number over the steps that were not skipped, and how many were."""
    made = [values for values in found if not values.get("skipped")]
    skipped = {"skipped": len(found) - len(made)} if "skipped" in found[0] else {}
    return {name: float(np.mean([values[name] for values in made])) for name in found[0] if made and name != "skipped"} | skipped


@jax.jit
def _finite(tree):
    return jax.tree.map(lambda a: jnp.isfinite(a).all(), tree)


def not_finite(current: state.TrainState) -> str | None:
    """The name of an array that is not finite."""
    found = jax.tree.leaves_with_path(jax.device_get(_finite(current)))
    return next((jax.tree_util.keystr(path, simple=True, separator="/") for path, finite in found if not finite), None)


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits.py", lock_config=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
    ALLOW = flags.DEFINE_bool("allow_drift", False, "Resume with a config that changes the result, which config_history.jsonl notes.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(lambda: train(CONFIG.value, WORKDIR.value, cli.StopSignal(), ALLOW.value), several=True)
