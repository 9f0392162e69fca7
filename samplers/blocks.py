"""Examples in blocks of a fixed size: a result then does not depend on how many others are computed with it.

A compiled program rounds differently for a batch of 1 than for a batch of 100, and a decision to stop may hang on
the last bit. All blocks are computed by one program, whatever the batch, so that an example's result is the same
to the last bit alone, in any batch and in any order.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from samplers.change_of_variables import divergence_forms
from sde_lib.denoiser import Denoiser

BLOCK = 32
SMALL = 64  # dimensions up to which a batch of less than BLOCK examples is filled up to one
VECTORS = 1024  # examples x nodes x tangents that are evaluated at once: what a cache holds


def block_size(batch: int, dim: int) -> int:
    """Examples of a block: `BLOCK`, but the whole of a smaller batch of large examples, which are costly to fill up."""
    return BLOCK if dim <= SMALL else min(BLOCK, batch)


def denoiser_of(den: Denoiser, rows: Int[Array, " n"]) -> Denoiser:
    """The denoiser of some examples of the batch, which keep their conditions."""
    return replace(den, cond=jax.tree.map(lambda c: c[rows], den.cond))


def probes_of(probes: Float[Array, "..."] | None, rows: Int[Array, " n"], ndim: int):
    """The probes [..., n, *] of some examples, of probes [..., b, *] for x of `ndim` axes."""
    return None if probes is None else jnp.take(probes, rows, axis=-ndim)


def map_blocks(fn: Callable, batch: int, size: int):
    """fn(rows [size]) for the rows 0..batch - 1 in blocks, the last one filled up with examples from the beginning: results [batch, ...]."""
    count = -(-batch // size)
    rows = (jnp.arange(count * size) % batch).reshape(count, size)
    results = jax.lax.map(fn, rows)
    return jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:batch], results)


def update_blocks(fn: Callable, active: Bool[Array, " b"], results, size: int):
    """results [b, ...] with those of the active examples replaced by fn(rows [size], active [size]), in as few blocks as hold them.

    The last block is filled up with examples that are not active, whose results stay.
    """
    batch = len(active)
    order = jnp.argsort(~active, stable=True)
    order = jnp.concatenate([order, jnp.broadcast_to(order[-1:], (-batch % size,))])

    def one(i, results):
        rows = jax.lax.dynamic_slice(order, (i * size,), (size,))
        wanted = active[rows] & (i * size + jnp.arange(size) < batch)
        target = jnp.where(wanted, rows, batch)  # beyond the end, where nothing is written, for those that fill up the block
        return jax.tree.map(lambda old, new: old.at[target].set(new, mode="drop"), results, fn(rows, wanted))

    return jax.lax.fori_loop(0, -(-jnp.sum(active) // size), one, results)


def divergence_at_nodes(den: Denoiser, w: Float[Array, "n b"], z: Float[Array, "n b ..."], probes, kind: str, chunk: int):
    """v [n, b, ...] and the forms of div v [n, b, k] of all examples at all nodes; see `divergence_forms`.

    Nodes are joined to batches of no more than `VECTORS` examples x tangents.
    """
    n, b = z.shape[:2]
    tangents = min(chunk, z[0, 0].size) if kind == "exact" else probes.shape[-z.ndim]
    size = max(k for k in range(1, n + 1) if n % k == 0 and (k == 1 or k * b * tangents <= VECTORS))
    join = lambda a: a.reshape(n // size, size * b, *a.shape[2:])
    rows = jnp.tile(jnp.arange(b), size)
    some, vectors = denoiser_of(den, rows), probes_of(probes, rows, z.ndim - 1)
    results = jax.lax.map(lambda part: divergence_forms(some, part[0] ** 2, part[1], vectors, kind, chunk), (join(w), join(z)))
    return jax.tree.map(lambda a: a.reshape(n, b, *a.shape[2:]), results)
