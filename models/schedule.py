"""The learned noise schedule of variational diffusion models (Kingma et al. 2021, 2107.00630, appendix H)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Schedule(nn.Module):
    """How far the log-SNR has come from its first value to its last at u in [0, 1]: a monotone network s with s(0) = 0, s(1) = 1.

    Called with u [B] it returns s [B]; the log-SNR is ends[0] + (ends[1] - ends[0]) s, where `ends` [2] is a parameter too: `first` (near the data)
    and `last` at the start, when s is nearly linear. VDM's gamma is -2 x log-SNR; it begins at -13.3 and 5.
    """

    first: float
    last: float
    width: int = 1024

    @nn.compact
    def __call__(self, u: Float[Array, " b"]) -> Float[Array, " b"]:
        self.param("ends", lambda key: jnp.array([self.first, self.last]))
        normal = nn.initializers.normal(1.0)
        slope = self.param("slope", nn.initializers.ones, ())
        inner = self.param("inner", normal, (self.width,))
        offset = self.param("offset", nn.initializers.zeros, (self.width,))
        outer = self.param("outer", normal, (self.width,))

        def rising(u):
            """A sum of increasing functions: their weights are made positive."""
            bent = jnp.tanh(jnp.abs(inner) * (u[:, None] - 0.5) + offset)
            return jnp.abs(slope) * u + jnp.mean(jnp.abs(outer) * bent, -1)

        low, high = rising(jnp.array([0.0, 1.0], u.dtype))
        return (rising(u) - low) / (high - low)
