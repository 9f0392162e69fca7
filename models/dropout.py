"""Dropout whose masks belong to examples, not to places in a batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Dropout(nn.Module):
    """Drops each value with probability `rate`, where `example` gives every row's global index; without `example` it is the identity.

    The mask of a row depends on the "dropout" key and its index alone, so that training does not depend on how a batch is split over devices.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], example: Int[Array, " b"] | None = None) -> Float[Array, "b ..."]:
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout = {self.rate}: expected a rate from 0 to below 1")
        if example is None or self.rate == 0.0:
            return x
        key = self.make_rng("dropout")
        keep = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - self.rate, x.shape[1:]))(example)
        return jnp.where(keep, x / (1 - self.rate), 0.0)
