"""How training scales: python -m experiments.benchmarks.scaling --out=experiments/benchmarks, which writes SCALING.md there, one page

Measured: one step at a fixed batch on 1, 2, ... simulated devices with a core each, as far as the cores go, and on one device with all cores.
Estimated: for each full-scale config at 8, 64 and 512 accelerators, the time that a step computes against the time that its collectives take.
Operations are those of the lowered step, the whole of it, on abstract shapes: no weights are made, and nothing is compiled.
"""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, data, network, parallel, state
from experiments.benchmarks.timing import seconds_of
from experiments.kept import write_text

ROOT = Path(__file__).parents[2]
COMMAND = "python -m experiments.benchmarks.scaling --out=experiments/benchmarks"
DEVICES = (8, 64, 512)
CONFIGS = ("score_sde:vp", "score_sde:ve_deep", "edm:cifar10", "edm:imagenet64", "flow_matching:tong", "flow_matching:lipman_imagenet64")
CONFIGS += ("vdm:cifar10", "vdm:imagenet64", "autoencoder:f8", "dit:xl", "sit:xl", "mmdit:SD3 medium")
STAND_INS = {"cifar10": ((32, 32, 3), 10), "latents": ((32, 32, 4), 1000), "digits": ((8, 8, 1), 10)}  # shape of an example, and classes


@dataclass(frozen=True)
class Machine:
    """peak: FLOP/s in bfloat16. near: bytes/s that a device sends to its `group`, far: to other groups, each way. A pass of a collective takes
    `latency` seconds for each doubling of the number of devices besides."""

    name: str
    peak: float
    group: int
    near: float
    far: float
    latency: float = 5e-6


UTILISATION = 0.4
MACHINES = (
    Machine("H100", 989e12, group=8, near=450e9, far=50e9),
    Machine("TPU v5p", 459e12, group=8960, near=200e9, far=25e9),
)


@dataclass(frozen=True)
class Work:
    """Of one step of a config: its parameters, the examples of its batch, and FLOPs of the batch, over all devices."""

    name: str
    parameters: int
    batch: int
    flops: float


def full_scale(name: str) -> ConfigDict:
    """configs/NAME.py:VARIANT; "mmdit:SD3 medium" is that network (2403.03206) on latents of 256 x 256 pixels, on which the paper trains in batches
    of 4096, and 154 tokens: configs/mmdit.py itself is a small one."""
    file, _, variant = name.partition(":")
    module = importlib.import_module(f"configs.{file}")
    if variant != "SD3 medium":
        return module.get_config(*filter(None, [variant]))
    config = module.get_config()
    config.data.name = "latents"
    config.model.update(width=1536, depth=24, num_heads=24, num_classes=0, label_tokens=None, embeddings=(154, 4096, 2048))
    config.model.update(remat=True, dtype="bfloat16")
    config.training.batch = 4096
    return config


def work(name: str, config: ConfigDict) -> Work:
    """What a step of `config` takes, by the cost analysis of the lowered step, on one stand-in example of its data."""
    shape, classes = STAND_INS.get(config.data.name, ((config.data.size, config.data.size, 3), 1000))
    embeddings = config.model.embeddings or ()
    shape, classes = ((32, 32, 16), 0) if embeddings else (shape, classes)
    latent = config.data.name == "latents"
    batch = config.training.batch
    values = (*shape[:-1], 2 * shape[-1]) if latent else shape
    one = np.zeros((1, *values), np.float32 if latent else np.uint8)
    label = (np.zeros((1, *embeddings[:2]), np.float32), np.zeros((1, embeddings[2]), np.float32)) if embeddings else np.zeros(1, np.int32)
    kind = data.Latents if latent else data.Dataset
    dataset = kind(name, {"train": one, "test": one}, {"train": label, "test": label}, 1.0, 1.0, 0 if latent else 256, classes)
    net = network.from_config(config, classes, embeddings)
    of = lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype)
    batches = {"value": of(one), "label": jax.tree.map(of, label), "position": jax.ShapeDtypeStruct((batch,), jnp.uint32)}
    abstract = jax.eval_shape(lambda: state.init(config, net, dataset.shape))
    cost = jax.jit(parallel.parallel_step(state.make_step(config, net, dataset))).lower(abstract, batches).cost_analysis()
    parameters = sum(a.size for a in jax.tree.leaves(abstract.params))
    return Work(name, parameters, batch, cost["flops"] * jax.local_device_count())  # the analysis is of one device's part


# --- the estimate ---------------------------------------------------------------------------------------------------------------------


def communication(machine: Machine, n: int, bytes_: float, passes: float = 2.0) -> float:
    """Seconds of collectives over n devices on `bytes_` of each, in `passes`: reduce-scatter and all-gather are one each, an all-reduce is both.

    A ring sends (n - 1)/n of the bytes in a pass; over several groups of g devices, (g - 1)/g of them within the group, and of the g-th part that
    each device then has (m - 1)/m between the m groups (hierarchical, as NCCL's rings over as many network cards as devices)."""
    g = min(n, machine.group)
    m = -(-n // g)
    return passes * ((g - 1) / g * bytes_ / machine.near + (m - 1) / m * bytes_ / g / machine.far + np.log2(n) * machine.latency)


def efficiency(machine: Machine, work: Work, n: int, batch: float, passes: float = 2.0) -> tuple[float, float]:
    """Share of the time in which n devices compute, with a global batch of `batch`: with collectives after the step's computation, and beside its
    backward part, two thirds of it, as far as that hides them."""
    compute = work.flops / work.batch * batch / n / (UTILISATION * machine.peak)
    wire = communication(machine, n, 4.0 * work.parameters, passes)
    return compute / (compute + wire), compute / (compute + max(0.0, wire - 2 / 3 * compute))


def percent(pair: tuple[float, float]) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in pair)


def estimates(works: list[Work]) -> list[str]:
    """The tables, as lines of Markdown."""
    lines = ["| config | parameters | batch | TFLOP a step | GFLOP an example | all-reduce over 8 | FSDP over 8 | state |", "|---" * 8 + "|"]
    for w in works:
        reduced, sharded = (passes * 7 / 8 * 4 * w.parameters / 1e9 for passes in (2, 3))
        lines.append(
            f"| {w.name} | {w.parameters / 1e6:.1f} M | {w.batch} | {w.flops / 1e12:,.1f} | {w.flops / w.batch / 1e9:,.0f} "
            f"| {reduced:.2f} GB | {sharded:.2f} GB | {16 * w.parameters / 1e9:.1f} GB |"
        )
    tables = {
        "Strong: the config's own batch over n devices": lambda m, w, n: percent(efficiency(m, w, n, w.batch)) if w.batch % n == 0 else "",
        "Weak: an eighth of that batch on each of n devices": lambda m, w, n: percent(efficiency(m, w, n, n * w.batch / 8)),
        "Weak, with the parameters sharded over all n (FSDP)": lambda m, w, n: percent(efficiency(m, w, n, n * w.batch / 8, 3.0)),
    }
    for title, cell in tables.items():
        lines += ["", f"{title}; efficiency in %, without / with overlap:", ""]
        lines += ["| config | " + " | ".join(f"{m.name} x {n}" for m in MACHINES for n in DEVICES) + " |"]
        lines += ["|---" * (1 + len(MACHINES) * len(DEVICES)) + "|"]
        lines += [f"| {w.name} | " + " | ".join(cell(m, w, n) for m in MACHINES for n in DEVICES) + " |" for w in works]
    return lines


# --- the measurement ------------------------------------------------------------------------------------------------------------------


def fastest_step(config: ConfigDict, steps: int) -> float:
    """Seconds of the fastest of so many training steps on all devices of this process."""
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes, dataset.embeddings)
    holder = state.init(config, net, dataset.shape)
    step = parallel.parallel_step(state.make_step(config, net, dataset))
    stream, seconds = data.batches(dataset, config.training.batch, config.seed), []

    def once():
        nonlocal holder
        holder, metrics = step(holder, next(stream))
        return metrics

    for _ in range(1 + steps):
        seconds.append(seconds_of(once))
    return min(seconds[1:])


WORKER = """
import json, os, sys
config, steps, cores = json.loads(sys.argv[1])
os.sched_setaffinity(0, cores)
from ml_collections import ConfigDict
from experiments.benchmarks.scaling import fastest_step
print(fastest_step(ConfigDict(config), steps))
"""


def measured(config: ConfigDict, steps: int, repeats: int) -> list[str]:
    """A fixed batch on 1, 2, 4, ... simulated devices with a core each, beside one device with as many cores: lines of Markdown.

    Each in a process of its own that is held to its cores, in turn `repeats` times; the fastest step of all counts, as what else runs on the
    machine only slows steps down."""
    cores = sorted(os.sched_getaffinity(0))
    cases = [(n, n) for n in (1, 2, 4, 8) if n <= len(cores)]
    cases += [(1, k) for _, k in cases if k > 1]
    seconds = {case: np.inf for case in cases}
    for _ in range(repeats):
        for devices, held in cases:
            # the flags of a test's fast compilation would be measured too
            options = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
            arguments = json.dumps([json.loads(config.to_json()), steps, cores[:held]])
            done = subprocess.run([sys.executable, "-c", WORKER, arguments], env=os.environ | options, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{devices} simulated devices cannot be measured: {done.stderr.strip().splitlines()[-1]}")
            seconds[devices, held] = min(seconds[devices, held], float(done.stdout.split()[-1]))
    alone = seconds[1, 1]
    lines = ["| simulated devices | cores | ms a step | speed-up | efficiency |", "|---|---|---|---|---|"]
    for (devices, held), s in seconds.items():
        lines.append(f"| {devices} | {held} | {1e3 * s:.1f} | {alone / s:.2f} | {100 * alone / s / held:.0f} % |")
    return lines


PAGE = """# Scaling

Written by `{command}`{quick}.

## Measured, on simulated devices

{config}, a step at the fixed batch of {batch}; efficiency = time on one core / (cores x time), from the fastest steps:

{measured}

XLA spreads one device's operations over all cores that its process has, so that the rows with one device and several cores are what it makes of
them without data parallelism. Simulated devices share the cores of their process; none has a core of its own. The rows differ in where the work is
divided, between examples or within operations, and in the all-reduce of {megabytes:.1f} MB through shared memory. Cores of one CPU share its caches
and its memory, which limits both ways alike, and what else ran, which the fastest steps leave out only in part (load average {load:.1f} before). All
this says of the step is whether it has a serial part; it says nothing about networks.

## Estimated, for accelerators

The lowered step of each config at its full batch (`mmdit:SD3 medium` is that network on 32 x 32 x 16 latents with 154 tokens):

{estimates}

Assumptions. Compute: all operations of the lowered step (forward, backward, what `remat` computes again, optimizer, EMA), divided over the
devices, at {utilisation:.0f} % of the peak in bfloat16 ({peaks}).
That is optimistic for U-Nets of few channels, for few examples a device, and for configs in float32 (which all are but DiT, SiT and SD3, unless
`--config.model.dtype=bfloat16`); where computing is slower, efficiencies are higher than here. Communication: gradients are float32, an all-reduce
sends 2 (n - 1)/n x 4 bytes x parameters a device and step; FSDP gathers the parameters before the forward and before the backward pass and scatters
the gradients, 3 (n - 1)/n x 4 bytes x parameters, though the gathers could be bfloat16.
Links, each way and device: {links};
5 us for each doubling of n and pass besides. Without overlap the collectives follow the computation; with overlap they hide behind the backward
pass, two thirds of it, which is a bound: of FSDP's gathers one is in the forward pass, and nothing hides without a gap. Not in it: reading data
(`experiments.profile` measures that), stragglers, checkpoints, the optimizer's traffic in memory, congestion. Empty: the batch cannot be divided.
"State" is parameters, average and Adam's two moments in float32, on each device; with FSDP a n-th of it.
"""


def main():
    f = flags.FLAGS
    config = full_scale("digits")
    if f.quick:
        config.model.channels = 8
    config.training.batch = 64
    load = os.getloadavg()[0]
    # before this process takes the cores
    table = measured(config, *((2, 1) if f.quick else (30, 2)))
    small = work("digits", config)
    works = [work(name, full_scale(name)) for name in (("flow_matching:tong",) if f.quick else CONFIGS)]
    text = PAGE.format(
        command=COMMAND,
        quick=" with --quick" if f.quick else "",
        config=f"The U-Net of `configs/digits.py` ({small.parameters:,} parameters, {small.flops / 1e9:.2f} GFLOP)",
        batch=config.training.batch,
        measured="\n".join(table),
        load=load,
        megabytes=4e-6 * small.parameters,
        estimates="\n".join(estimates(works)),
        utilisation=100 * UTILISATION,
        peaks=", ".join(f"{m.name} {m.peak / 1e12:.0f} TFLOP/s" for m in MACHINES),
        links="; ".join(
            f"{m.name} {m.near / 1e9:.0f} GB/s within {m.group} (NVLink), {m.far / 1e9:.0f} GB/s between (InfiniBand, 400 Gbit/s)"
            if m.group == 8
            else f"{m.name} {m.near / 1e9:.0f} GB/s within a pod of {m.group} (ICI: one axis of the torus of 600 GB/s), so all of these"
            for m in MACHINES
        ),
    )
    print(text)
    file = Path(f.out) / ("SCALING_quick.md" if f.quick else "SCALING.md")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    print(f"wrote {file}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmarks", "Folder of SCALING.md.")
    flags.DEFINE_bool("quick", False, "One config and few steps, to see that it runs.")
    cli.run(main)
