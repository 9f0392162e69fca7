"""The predictor of AMED-Solver (Zhou et al. 2024, 2312.00094): what a solver's step should be, from what it is stepping from."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.embeddings import sinusoidal


class StepPredictor(nn.Module):
    """An MLP from features [B, ...] and the log-SNRs [B] of both ends of a step to three numbers in (-1, 1), [B, 3]; zero at the start.

    width: of its two hidden layers; some 6,000 parameters on 64 features. use_features: False lets it see the times alone.
    """

    width: int = 32
    use_features: bool = True

    @nn.compact
    def __call__(self, features: Float[Array, "b ..."], start: Float[Array, " b"], end: Float[Array, " b"]) -> Float[Array, "b 3"]:
        h = jnp.concatenate([sinusoidal(lam, 32, scale=10.0) for lam in (start, end)], -1)
        if self.use_features:
            h = jnp.concatenate([h, nn.LayerNorm()(nn.Dense(self.width)(features.reshape(len(features), -1)))], -1)
        h = nn.silu(nn.Dense(self.width)(h))
        h = nn.silu(nn.Dense(self.width)(h))
        return jnp.tanh(nn.Dense(3, kernel_init=nn.initializers.zeros)(h))
