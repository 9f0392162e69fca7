"""Train a model: python -m experiments.train --config=configs/digits.py --workdir=runs/digits [--config.training.steps=...]

The same command again resumes from the newest checkpoint and ends with the bit-identical state that an uninterrupted run has (on as many devices).
The workdir gets config.json, checkpoints/<step>/, log.jsonl and TensorBoard events. --config.lora.rank=8 --config.lora.base=runs/digits trains a
low-rank adapter of that run's weights, which get to base/; checkpoints then hold the adapter alone.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from experiments import cli, data, export, network, parallel, plots, runs, sources, state, weights
from experiments.checkpoints import Checkpoints
from experiments.writers import MetricWriter


def train(config: ConfigDict, workdir: str | Path, stop=False) -> state.TrainState:
    """Train until config.training.steps, resuming if `workdir` has checkpoints; returns the final state.

    stop: truthy once the run should save and leave (see `cli.StopSignal`). Raises ValueError for configs that cannot be run,
    FloatingPointError when the loss or its gradient is not finite (nothing is saved then), cli.Stopped when stopped.
    """
    workdir = Path(workdir)
    parts = config.training.accumulate
    if parts < 1:
        raise ValueError(f"config.training.accumulate = {parts}: expected at least 1")
    parallel.check_batch(config.training.batch, "config.training.batch", parts)
    if (workdir / weights.SAID).exists():
        raise ValueError(f"--workdir={workdir} is an export, not a run: name another folder")
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes, dataset.embeddings)
    current = state.init(config, net, dataset.shape)
    for name in ("steps", "log_every", "checkpoint_every"):
        if config.training[name] < 1:
            raise ValueError(f"config.training.{name} = {config.training[name]}: expected at least 1")
    workdir.mkdir(parents=True, exist_ok=True)

    with Checkpoints(workdir / "checkpoints", config.training.keep) as checkpoints, MetricWriter(workdir) as writer:
        check_config(config, workdir, resuming=bool(checkpoints.steps()))
        if isinstance(dataset, data.Latents):
            runs.same_latents(workdir, dataset)
            (workdir / sources.LATENTS).write_text(json.dumps({name: dataset.about[name] for name in runs.LATENTS_ARE}))
        if checkpoints.steps():
            current = checkpoints.restore(current)
            print(f"resumed from step {int(current.step)}")
        base = frozen(config, net, dataset.shape, workdir, resuming=bool(checkpoints.steps()))
        step_fn = parallel.parallel_step(state.make_step(config, net, dataset), base)
        start = int(current.step)
        size = sum(a.size for a in jax.tree.leaves(current.params))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        print(f"{dataset.name}: {len(dataset.values['train'])} training examples; {size:,} parameters{' of an adapter' if base else ''}; {devices}")
        print("compiling ...", flush=True)

        pending, clock, since = [], time.perf_counter(), start
        for k, batch in zip(range(start, config.training.steps), data.batches(dataset, config.training.batch, config.seed, start)):
            current, metrics = step_fn(current, batch)
            pending.append(metrics)
            done = k + 1
            if done == start + 1:  # the first step compiles: the speed is of the others
                check_finite(pending, done)
                print(f"compiled in {time.perf_counter() - clock:.1f} s", flush=True)
                clock, since = time.perf_counter(), done
            logging = done % config.training.log_every == 0 or done == config.training.steps
            stopping = bool(stop)  # asked once a step: a signal may come between two questions
            saving = done % config.training.checkpoint_every == 0 or done == config.training.steps or stopping
            if logging or saving:
                values = check_finite(pending, done)
            if logging:
                pending, rate = [], (done - since) / (time.perf_counter() - clock)
                clock, since = time.perf_counter(), done
                writer.write(done, **values, steps_per_second=rate)
                eta = (config.training.steps - done) / rate if rate else 0.0
                text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
                print(f"step {done}/{config.training.steps}  {text}  {rate:.1f} steps/s  ETA {eta // 60:.0f}:{eta % 60:02.0f}", flush=True)
            if saving:
                checkpoints.save(current)
            if stopping and done < config.training.steps:
                raise cli.Stopped(f"stopped by {getattr(stop, 'name', 'request')} at step {done}, which is saved: the same command resumes")
    plots.loss_curve(workdir)
    return current


def frozen(config: ConfigDict, net: network.Network, shape: tuple[int, ...], workdir: Path, resuming: bool):
    """The averaged weights of `config.lora.base` that an adapter is trained on, which are copied to the workdir first; None if all are trained.

    Raises ValueError if they are of another network, or of another path or prediction.
    """
    name = config.lora.base
    if bool(config.lora.rank) != bool(name):
        raise ValueError(f"config.lora.rank = {config.lora.rank} and config.lora.base = '{name}': expected both, or neither (0 and '')")
    if not config.lora.rank:
        return None
    if not resuming:
        base = runs.load_run(name)
        like = jax.eval_shape(lambda: net.init(jax.random.key(0), shape))
        weights.check(flatten_dict(base.params, sep="/"), flatten_dict(like, sep="/"), f"config.lora.base = {name} is not of this config's network")
        for key in ("sde", "kind", "sigma_data", "clock"):
            theirs, ours = getattr(base.network, key, None), getattr(net, key, None)
            if theirs != ours:
                raise ValueError(f"config.lora.base = {name} was trained with {key} = {theirs}, this config has {ours}: expected the same")
        kept = workdir / runs.BASE
        if (kept / weights.SAID).exists():  # of a run that was stopped before its first checkpoint
            shutil.rmtree(kept)
        with tempfile.TemporaryDirectory(dir=workdir, suffix=".tmp") as temporary:
            export.write(name, Path(temporary) / runs.BASE, which=("ema",))
            (Path(temporary) / runs.BASE).rename(kept)
    return runs.load_run(workdir / runs.BASE).params


def check_finite(pending: list, step: int) -> dict[str, float]:
    """The mean of each metric over the steps since the last log. Raises FloatingPointError if any is not finite."""
    values = {name: [float(m[name]) for m in pending] for name in pending[0]}
    for name, series in values.items():
        bad = np.flatnonzero(~np.isfinite(series))
        if len(bad):
            first = step - len(series) + 1 + int(bad[0])
            raise FloatingPointError(
                f"{name} is {series[bad[0]]} at step {first}: stopped, checkpoints before it are kept. Try a lower config.optim.learning_rate"
            )
    return {name: float(np.mean(series)) for name, series in values.items()}


def check_config(config: ConfigDict, workdir: Path, resuming: bool) -> None:
    """Write config.json; resuming, refuse a config that differs from the run's in more than the length and the logging of training.

    The length counts too under a schedule that ends with it, whose every rate depends on it.
    """
    file = workdir / "config.json"
    new = json.loads(config.to_json())
    free = {f"training.{name}" for name in ("log_every", "checkpoint_every", "keep", "accumulate")}
    if config.optim.schedule == "constant":
        free.add("training.steps")
    if file.exists() and resuming:
        before, after = cli.flat(cli.load_config(workdir)), cli.flat(ConfigDict(new))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and key not in free:
                raise ValueError(
                    f"{workdir} was trained with {key} = {before.get(key)}, not {after.get(key)}: use another --workdir, or the same value"
                )
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(new, indent=1))
    temporary.rename(file)  # at once: a run without a readable config is lost


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits.py", lock_config=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(lambda: train(CONFIG.value, WORKDIR.value, cli.StopSignal()))
