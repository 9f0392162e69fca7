r"""Times drawn where the loss is large: config.objective.time.name = "importance" (iDDPM, Nichol & Dhariwal 2021, 2102.09672, section 3.3).

The variance of an estimate of the mean loss is least for times of density p proportional to sqrt(E[L_t^2]), each loss counting 1/p. Here t is uniform
in K bins of [eps, T], bin k has probability p_k, and an example counts 1/(K p_k): the expected loss and its gradient are those of uniform times.
E[L^2] of a bin is the mean of its last losses, or rather one in which they fade; p is uniform until every bin has 10, and always 0.001 uniform.
The history is part of the train state: a resumed run goes on bit-identically.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

BINS, MEMORY = 100, 400  # as many losses as iDDPM's history, 10 of each of 4000 steps
WARM, UNIFORM = 10, 1e-3


@flax.struct.dataclass
class History:
    """square: the mean squared loss of each bin [K]. count: of how many, at most MEMORY [K]."""

    square: Float[Array, " k"]
    count: Float[Array, " k"]


def new() -> History:
    """Of no losses."""
    return History(jnp.zeros(BINS), jnp.zeros(BINS))


def density(history: History) -> Float[Array, " k"]:
    """p_k."""
    root = jnp.sqrt(history.square)
    learned = (1 - UNIFORM) * root / jnp.maximum(root.sum(), 1e-30) + UNIFORM / BINS
    return jnp.where(jnp.all(history.count >= WARM) & (root.sum() > 0), learned, 1 / BINS)


def draw(history: History, u: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """u uniform on (0, 1), moved to the density, in order; and what each counts, 1/(K p_k)."""
    p = density(history)
    ends = jnp.cumsum(p)
    k = jnp.minimum(jnp.searchsorted(ends, u * ends[-1], side="right"), BINS - 1)
    inside = jnp.clip((u * ends[-1] - (ends[k] - p[k])) / p[k], 0.0, 1.0)
    return jnp.clip((k + inside) / BINS, 0.0, 1.0), 1 / (BINS * p[k])


def tally(u: Float[Array, " b"], losses: Float[Array, " b"]) -> Float[Array, "2 k"]:
    """Sums over the examples of each bin of the squared losses, which do not yet count 1/(K p_k), and of 1; those of parts of a batch add up."""
    k = jnp.clip(jnp.floor(u * BINS).astype(int), 0, BINS - 1)
    return jnp.zeros((2, BINS)).at[:, k].add(jnp.stack([losses**2, jnp.ones_like(losses)]))


def update(history: History, found: Float[Array, "2 k"]) -> History:
    """The history after a batch of which `found` is the tally."""
    square, n = found
    count = jnp.minimum(history.count + n, MEMORY)
    weight = jnp.minimum(n / jnp.maximum(count, 1.0), 1.0)
    return History(history.square + weight * (square / jnp.maximum(n, 1.0) - history.square), count)
