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

from experiments import cli, couplings, data, drift, export, guidance, hosts, network, parallel, plots, runs, sources, state, weights
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
    check_settings(config.training)
    if (workdir / weights.SAID).exists():
        raise ValueError(f"--workdir={workdir} is an export, not a run: name another folder")
    dataset = read(config, workdir)
    check_used(config, dataset)
    net = network.from_config(config, dataset.num_classes, dataset.embeddings)
    couple = couplings.from_config(config, dataset, net, jax.process_count())
    divided = parallel.divided if config.training.sharding == "fsdp" else None
    make = partial(state.init, config, net, dataset.shape, divided)
    current = make() if divided else jax.eval_shape(make)  # shapes alone as long as there may be a checkpoint; but they tell no shardings
    workdir.mkdir(parents=True, exist_ok=True)

    keep, every = config.training.keep, config.training.keep_every
    with Checkpoints(workdir / "checkpoints", keep, every) as checkpoints, MetricWriter(workdir) as writer:
        checkpoints.expected()
        examined = drift.examined(dataset)
        resuming = bool(checkpoints.steps())
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
        if hosts.writes() and start <= steps:
            drift.record(config, workdir, examined, start, changes)  # now that the checkpoint is known to fit
        if start >= steps:
            print(f"nothing to train: config.training.steps = {steps}", flush=True)
            if hosts.writes():
                plots.loss_curve(workdir)
            return current
        fixed = frozen(config, net, dataset, workdir, resuming)
        if not resuming:
            current = begun(config, current if divided else make())
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

        source = data.Batches(dataset, config.training.batch, config.seed)
        pending, unlogged, idle, clock, since = [], [], 0, time.perf_counter(), start
        for k, batch in zip(range(start, steps), data.batches(dataset, config.training.batch, config.seed, start, couple)):
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


def check_settings(training: ConfigDict) -> None:
    """Raise ValueError for a field of `config.training` that is no use."""
    for names, least in ((("steps", "log_every", "checkpoint_every", "accumulate"), 1), (("keep", "keep_every"), 0)):
        for name in names:
            if training[name] < least:
                raise ValueError(f"config.training.{name} = {training[name]}: expected at least {least}")
    for name, words in (("sharding", ("data", "fsdp")), ("nonfinite", ("stop", "skip"))):
        if training[name] not in words:
            raise ValueError(f"config.training.{name} = '{training[name]}': expected {' or '.join(words)}")
    parallel.check_batch(training.batch, "config.training.batch", training.accumulate)


def frozen(config: ConfigDict, net: network.Network, dataset: data.Dataset, workdir: Path, resuming: bool) -> state.Frozen:
    """The averaged weights of `config.lora.base`, which an adapter is trained on, and the model of `config.teacher.workdir`, if any: copied to the
    workdir first.

    Raises ValueError if the weights are of another network, or either is of another path, prediction or examples; and for a teacher without a use, or
    a loss without its teacher.
    """
    name, taught, shape = config.lora.base, config.teacher.workdir, dataset.shape
    if bool(config.lora.rank) != bool(name):
        raise ValueError(f"config.lora.rank = {config.lora.rank} and config.lora.base = '{name}': expected both, or neither (0 and '')")
    if distils(config.objective) != bool(taught):
        of = f"config.objective.loss = '{config.objective.loss}', config.teacher.workdir = '{taught}'"
        raise ValueError(f"{of}: expected a teacher (experiments.distill) of perflow, progressive, add, and by their step consistency and scm, alone")
    if (name or taught) and jax.process_count() > 1:
        raise ValueError(f"config.lora.base = '{name}', teacher.workdir = '{taught}': expected one process, there are {jax.process_count()}")
    if not (name or taught):
        return state.Frozen()
    base = teacher = features = None
    if name:
        keys = ("sde", "kind", "sigma_data", "clock")
        run = kept(name, "config.lora.base", workdir / runs.BASE, resuming, net, keys)
        like = jax.eval_shape(lambda: net.init(jax.random.key(0), shape))
        weights.check(flatten_dict(run.params, sep="/"), flatten_dict(like, sep="/"), f"config.lora.base = {name} is not of this config's network")
        check_space(run.dataset, dataset, f"config.lora.base = {name}")
        base = run.params
    if taught:
        run = kept(taught, "config.teacher.workdir", workdir / runs.TEACHER, resuming, net, ("sde", "none"))
        if couplings.coupled(run.config.coupling) or run.network.interpolant is not None or run.config.data.name == "pairs":
            raise ValueError(
                f"config.teacher.workdir = {taught} was trained on noise that is joined with the data, is data, or lies beside both ends: it is "
                "asked at data with independent noise, which it has not seen; expected a teacher without coupling, or pairs of it"
            )
        if run.dataset.shape != shape:
            raise ValueError(f"config.teacher.workdir = {taught} is of examples {run.dataset.shape}: expected those of config.data, {shape}")
        check_space(run.dataset, dataset, f"config.teacher.workdir = {taught}")
        high = config.objective.consistency.omega[1]
        if high and config.teacher.guidance != 1:
            raise ValueError(
                f"config.teacher.guidance = {config.teacher.guidance} beside objective.consistency.omega, by which it is guided: expected 1"
            )
        if high:
            guidance.guide(run, high)  # its checks
        teacher = replace(guidance.guide(run, config.teacher.guidance).denoiser(run.labels(1)), cond=None)
        if net.discriminator is not None:
            features = jax.tree_util.Partial(run.network.features, run.params)
            seen = lambda of: [a.shape for a in jax.eval_shape(lambda: of.features(of.init(jax.random.key(0), shape), *one))]
            one = jnp.zeros((1, *shape)), jnp.ones(1)
            if seen(run.network) != seen(net):
                raise ValueError(f"config.teacher.workdir = {taught}: its features are not of the shapes of config.model's; expected a like network")
    return state.Frozen(base, teacher, features)


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


def kept(name: str, what: str, copy: Path, resuming: bool, net: network.Network, alike: tuple[str, ...]) -> runs.Run:
    """The run `name` as it was when this one began: an export of its averaged weights, `copy`. Raises ValueError, `what`, if it is not `alike`."""
    if not resuming:
        given = runs.load_run(name).network
        for key in alike:
            theirs, ours = getattr(given, key, None), getattr(net, key, None)
            if theirs != ours:
                raise ValueError(f"{what} = {name} was trained with {key} = {theirs}, this config has {ours}: expected the same")
        if (copy / weights.SAID).exists():  # of a run that was stopped before its first checkpoint
            shutil.rmtree(copy)
        with tempfile.TemporaryDirectory(dir=copy.parent, suffix=".tmp") as temporary:
            export.write(name, Path(temporary) / copy.name, which=("ema",))
            (Path(temporary) / copy.name).rename(copy)
    return runs.load_run(copy)


def begun(config: ConfigDict, current: state.TrainState) -> state.TrainState:
    """A new state with the averaged weights of `config.training.init` in the place of those of the same name and shape, raw and averaged.

    Raises ValueError for "teacher" without one, and where none fit.
    """
    name = config.teacher.workdir if config.training.init == "teacher" else config.training.init
    if not config.training.init:
        return current
    if not name or config.lora.rank:
        raise ValueError(f"config.training.init = '{config.training.init}': expected a workdir, a teacher if 'teacher', and no adapter (lora.base)")
    run = runs.load_run(name)
    theirs, ours = (flatten_dict(params, sep="/") for params in (run.params, current.params))
    own = lambda key: key.startswith("uncertainty/") and run.config.objective.loss != config.objective.loss  # of another loss
    fits = {key: leaf for key, leaf in theirs.items() if key in ours and ours[key].shape == leaf.shape and not own(key)}
    if not fits:
        raise ValueError(f"config.training.init = {name}: none of its arrays is one of config.model's; expected a run of a like network")
    print(f"begins from {len(fits)} of the {len(ours)} arrays of {name}")
    new = lambda: unflatten_dict({key: jnp.array(fits.get(key, leaf), leaf.dtype, copy=True) for key, leaf in ours.items()}, sep="/")
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
        index = source.index(np.arange(source.batch) + (at - 1) * source.batch)
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
