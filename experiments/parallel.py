"""Data parallelism, all of it: `pmap` for the training step, sharded arrays for everything else."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.state import AXIS


def check_batch(batch: int, what: str, parts: int = 1) -> None:
    """Raise ValueError, naming the nearest batch sizes that work, if `batch` cannot be divided over the devices, in `parts` on each."""
    n = jax.device_count() * parts
    if batch < 1 or batch % n:
        lower, upper = batch // n * n, (batch // n + 1) * n
        nearest = f"{lower} or {upper}" if lower > 0 else f"{upper}"
        each = f" in {parts} parts each" if parts > 1 else ""
        raise ValueError(f"{what} = {batch} cannot be divided over {n // parts} devices{each}: the nearest that can is {nearest}")


def parallel_step(step: Callable, base=None) -> Callable:
    """step(state, batch, base) of one device, run on all, as a function of state and batch: the state is replicated and donated, the batch [B, ...]
    split along its first axis, and `base` replicated and kept.

    With `in_axes` None and `out_axes` None the state has no device axis, on one device or many.
    """
    n = jax.local_device_count()
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=(0,))
    base = replicate(base)
    # several devices simulated on one CPU can dead-lock in the all-reduce when steps are queued
    block = n > 1 and jax.default_backend() == "cpu"

    def run(state, batch):
        result = mapped(state, jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), batch), base)
        return jax.block_until_ready(result) if block else result

    return run


def shard(tree):
    """Arrays [B, ...] laid out over all devices along the first axis; B must be a multiple of their number."""
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree):
    """Arrays copied to all devices."""
    return jax.device_put(tree, NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec()))
