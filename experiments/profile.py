"""Where the time of a training step goes, on this machine: python -m experiments.profile --config=configs/digits.py [--steps=20] [--trace=DIR]

Trains as experiments.train does, with the config's own data, and saves nothing: how long the step compiles, waits for data, transfers and computes;
its operations and bytes as XLA counts them, and its memory; whether it is input-bound or compute-bound, with the numbers that say so. The step is
compiled twice, once to count. --trace writes what TensorBoard's profile plugin (pip install tensorboard-plugin-profile) shows.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, couplings, data, network, parallel, ranges, state
from experiments.data import Dataset
from experiments.doctor import size

IDLE = 0.2  # share of the time that the device may wait for data before a step is called input-bound
ROUNDS = 3


def analysis(config: ConfigDict, compiled) -> dict[str, float]:
    """FLOPs and bytes of a step of one device, as XLA counts them in what it compiled, and bytes of memory.

    What is in custom kernels (attention of cuDNN) is not counted. The parts of `training.accumulate` are a loop, whose body XLA counts once.
    """
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    cost = cost[0] if isinstance(cost, list) else cost  # before JAX 0.5, and of some backends
    found = {name: config.training.accumulate * cost.get(key, 0.0) for name, key in (("flops", "flops"), ("bytes", "bytes accessed"))}
    if memory is not None:
        found |= {part: getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "output", "temp", "alias")}
        found["memory"] = found["argument"] + found["output"] + found["temp"] - found["alias"]
    return found


def profile(config: ConfigDict, dataset: Dataset, steps: int, trace: str | Path = "") -> dict[str, float | str]:
    """Seconds, FLOPs and bytes of a training step, over `ROUNDS` x `steps` steps. Nothing of the weights is kept.

    compile: of the first step. wait: for the next batch, when the step before has ended; transfer: of the batch, alone; compute: of the step that has
    its batch at hand, with its transfer. step: of the loop of training, where data are made while the device computes. idle: the share of it in which
    the device has nothing to do, max(0, min(step - compute, wait)) / step. bound: "input" if that is above `IDLE`, else "compute". Medians over
    the steps, and for wait and step, as threads read several batches at once, over the means of the rounds.
    Raises ValueError for configs that cannot be run.
    """
    if steps < 1:
        raise ValueError(f"--steps={steps}: expected at least 1")
    ranges.check(config)
    parallel.check_batch(config.training.batch, "config.training.batch", config.training.accumulate)
    net = network.from_config(config, dataset.num_classes, dataset.embeddings)
    current = state.init(config, net, dataset.shape, parallel.divided if config.training.sharding == "fsdp" else None)
    frozen = state.Frozen(base=net.init(jax.random.key(0), dataset.shape) if config.lora.rank else None)  # random ones take as long
    step_fn = parallel.training_step(config, net, dataset, frozen)
    stream = data.batches(dataset, config.training.batch, config.seed, couple=couplings.from_config(config, dataset, net))
    batch = next(stream)

    found = {"parameters": sum(a.size for a in jax.tree.leaves(current.params))}
    found |= analysis(config, parallel.lower(config, net, dataset, current, batch, frozen).compile())
    clock = time.perf_counter()
    current, _ = jax.block_until_ready(step_fn(current, batch))
    found["compile"] = time.perf_counter() - clock

    seconds = {"wait": [], "transfer": [], "compute": [], "step": []}
    for _ in range(ROUNDS):
        waits = []
        for _ in range(steps):
            clocks = [time.perf_counter()]
            batch = next(stream)
            clocks.append(time.perf_counter())
            jax.block_until_ready(parallel.shard(batch))
            clocks.append(time.perf_counter())
            current, _ = jax.block_until_ready(step_fn(current, batch))
            clocks.append(time.perf_counter())
            wait, transfer, compute = np.diff(clocks)
            waits.append(wait)
            seconds["transfer"].append(transfer)
            seconds["compute"].append(compute)
        seconds["wait"].append(np.mean(waits))
        clock = time.perf_counter()
        for _ in range(steps):
            current, _ = step_fn(current, next(stream))
        jax.block_until_ready(current)
        seconds["step"].append((time.perf_counter() - clock) / steps)
    if trace:
        with jax.profiler.trace(str(trace)):
            for _ in range(steps):
                current, _ = step_fn(current, next(stream))
            jax.block_until_ready(current)
    found |= {name: float(np.median(values)) for name, values in seconds.items()}
    found["idle"] = float(np.clip(found["step"] - found["compute"], 0, found["wait"])) / found["step"]
    found["bound"] = "input" if found["idle"] > IDLE else "compute"
    return found


def report(config: ConfigDict, dataset: Dataset, found: dict) -> str:
    """What `profile` found, as one screen."""
    ms = lambda name: f"{1e3 * found[name]:.3g} ms"
    devices, batch = jax.device_count(), config.training.batch
    lines = [
        f"{dataset.name} {dataset.shape}, {config.model.name} of {found['parameters']:,} trained parameters, batch {batch} on {devices} x "
        f"{jax.devices()[0].device_kind}",
        f"compiled in {found['compile']:.1f} s",
        f"step {ms('step')}: {1 / found['step']:.3g} steps/s, {batch / found['step']:.4g} examples/s",
        f"    waiting for data {ms('wait')}, transfer {ms('transfer')}, transfer and compute {ms('compute')} (one after another)",
        f"    a device's: {found['flops'] / 1e9:.4g} GFLOP, {found['flops'] / found['compute'] / 1e9:.4g} GFLOP/s; "
        f"{found['bytes'] / 1e9:.4g} GB accessed, {found['flops'] / max(found['bytes'], 1):.3g} FLOP/byte",
    ]
    if "memory" in found:
        parts = ", ".join(f"{what} {size(found[part])}" for part, what in (("argument", "state and batch"), ("temp", "temporary")))
        lines.append(f"    its memory: {size(found['memory'])} ({parts})")
    lines.append(
        f"{found['bound']}-bound: the device waits for data {100 * found['idle']:.0f} % of the time (input-bound from {100 * IDLE:.0f} % on): a step "
        f"takes {ms('step')} in the loop of training, {ms('compute')} with its batch at hand, and the next batch another {ms('wait')}"
    )
    return "\n".join(lines)


def main():
    f = flags.FLAGS
    dataset = data.load(f.config.data)
    print(report(f.config, dataset, profile(f.config, dataset, f.steps, f.trace)))
    if f.trace:
        print(f"wrote {f.trace} (tensorboard --logdir={f.trace})")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits.py", lock_config=True)
    flags.DEFINE_integer("steps", 20, "Steps of each of the rounds that are timed.")
    flags.DEFINE_string("trace", "", "Folder of a trace for TensorBoard; none by default.")
    flags.mark_flag_as_required("config")
    cli.run(main)
