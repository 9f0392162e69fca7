"""Parallelism, all of it: of the training step `pmap` over the batch, or, where a model outgrows one device, `jit` over parts of its arrays too;
sharded arrays for everything else. Devices are those of all processes (`experiments.hosts`), each of which reads its own rows of a batch alone."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.state import AXIS, make_step


def check_batch(batch: int, what: str, parts: int = 1) -> None:
    """Raise ValueError, naming the nearest batch sizes that work, if `batch` cannot be divided over the devices, in `parts` on each."""
    n = jax.device_count() * parts
    if batch < 1 or batch % n:
        lower, upper = batch // n * n, (batch // n + 1) * n
        nearest = f"{lower} or {upper}" if lower > 0 else f"{upper}"
        each = f" in {parts} parts each" if parts > 1 else ""
        raise ValueError(f"{what} = {batch} cannot be divided over {n // parts} devices{each}: the nearest that can is {nearest}")


def parallel_step(step: Callable, frozen=None) -> Callable:
    """step(state, batch, frozen) of one device, run on all, as a function of state and batch: the state is replicated and donated, the batch [B, ...]
    split along its first axis, and `frozen` replicated and kept.

    With `in_axes` None and `out_axes` None the state has no device axis, on one device or many.
    """
    n = jax.local_device_count()
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=(0,))
    frozen = replicate(frozen)

    def run(state, batch):
        return _settled(mapped(state, jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), batch), frozen))

    return run


def training_step(config, net, dataset, frozen=None) -> Callable:
    """The step of `config.training.sharding`, as a function of state and batch."""
    if config.training.sharding == "fsdp":
        return divided_step(make_step(config, net, dataset, axis=None), frozen)
    return parallel_step(make_step(config, net, dataset), frozen)


SMALL = 1024  # numbers in an array that is not worth dividing


def spec(shape: tuple[int, ...], n: int) -> PartitionSpec:
    """How an array of a state is divided over n devices: along its longest axis that n divides; a small one, or one without such an axis, is on
    all."""
    axes = [i for i, size in enumerate(shape) if size % n == 0]
    if n == 1 or not axes or np.prod(shape) < SMALL:
        return PartitionSpec()
    longest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*(AXIS if i == longest else None for i in range(len(shape))))


def divided(tree):
    """The shardings by which each device holds a part of a state's arrays (ZeRO-3, Rajbhandari et al. 2020, 1910.02054; FSDP, Zhao et al. 2023,
    2304.11277)."""
    return jax.tree.map(lambda a: NamedSharding(_mesh(), spec(a.shape, jax.device_count())), tree)


def divided_step(step: Callable, frozen=None) -> Callable:
    """As `parallel_step`, of a step without an axis, for a state whose arrays are `divided`: XLA gathers parameters where they are needed, and
    scatters the sum of the gradients."""
    frozen, compiled, rows = replicate(frozen), {}, NamedSharding(_mesh(), PartitionSpec(AXIS))

    def run(state, batch):
        if not compiled:
            state = jax.tree.map(_put, state, divided(state))
            compiled["step"] = _jit_divided(step, state)
        batch = jax.tree.map(lambda a: jax.make_array_from_process_local_data(rows, np.asarray(a)), batch)
        return _settled(compiled["step"](state, batch, frozen))

    return run


def _jit_divided(step: Callable, state) -> Callable:
    layout, whole = divided(state), NamedSharding(_mesh(), PartitionSpec())
    return jax.jit(step, in_shardings=(layout, None, None), out_shardings=(layout, whole), donate_argnums=(0,))


def lower(config, net, dataset, state, batch, frozen=None):
    """The step of `training_step`, lowered: for what XLA counts in it."""
    if config.training.sharding == "fsdp":
        return _jit_divided(make_step(config, net, dataset, axis=None), state).lower(state, batch, replicate(frozen))
    return jax.jit(training_step(config, net, dataset, frozen), donate_argnums=0).lower(state, batch)


def _put(a, sharding):
    """An array that every process has, or one that is in place already, in `sharding`."""
    return a if getattr(a, "sharding", None) == sharding else jax.make_array_from_callback(a.shape, sharding, lambda index: np.asarray(a)[index])


def _settled(result):
    """Several devices on CPUs can dead-lock in the all-reduce when steps are queued."""
    return jax.block_until_ready(result) if jax.device_count() > 1 and jax.default_backend() == "cpu" else result


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (AXIS,))


def shard(tree):
    """Arrays [B, ...] laid out over all devices along the first axis; B must be a multiple of their number."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(AXIS)))


def replicate(tree):
    """Arrays copied to all devices."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))
