"""A learned weight of losses by time."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Weight(nn.Module):
    """w [B] of the time t [B] that a network is told, by which a loss L is weighted as e^w L - w, so that at its best e^-w is the mean of L at t
    (Kendall et al. 2018, 1705.07115; EDM2, 2312.02696, eq. 21): a linear function of `features` random Fourier features; 0 at the start."""

    features: int = 128

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        frequency, phase = np.random.default_rng(0).normal(size=self.features), np.random.default_rng(1).uniform(size=self.features)
        waves = np.sqrt(2) * jnp.cos(2 * np.pi * (t[:, None] * jnp.asarray(frequency, t.dtype) + jnp.asarray(phase, t.dtype)))
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(waves)[:, 0]
