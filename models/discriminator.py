"""A discriminator on the features of a frozen network: a light head on each (ADD, Sauer et al. 2023, 2311.17042, section 3.2; LADD, 2403.12015)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.convolution import convolve
from models.embeddings import Conditioning


class Head(nn.Module):
    """Features [B, C] of vectors, [B, N, C] of tokens or [B, H, W, C] of pixels -> a logit for each place, [B, ...]: a layer, a residual block that
    sees neighbours (9 tokens, 3 x 3 pixels) and a projection on the condition [B, width] (1802.05637). Normalised over channels: no batch-mates."""

    width: int

    @nn.compact
    def __call__(self, x, condition):
        if x.ndim == 2:
            block = nn.Dense(self.width)
        elif x.ndim == 3:
            block = nn.Conv(self.width, (9,))
        else:
            block = nn.Conv(self.width, (3, 3), conv_general_dilated=convolve)
        bent = lambda h: nn.leaky_relu(nn.LayerNorm()(h), 0.2)
        h = bent(nn.Dense(self.width)(x))
        h = h + bent(block(h))
        projected = jnp.einsum("b...c,bc->b...", h, nn.Dense(self.width)(condition)) / self.width**0.5
        return nn.Dense(1)(h)[..., 0] + projected


class Discriminator(nn.Module):
    """One `Head` of `width` for each array of features, told the time t [B] that they are of and the label, as a network is (`Conditioning`;
    num_classes 0: of embeddings, or none). Returns as many arrays of logits as there are features."""

    num_classes: int = 0
    width: int = 64

    @nn.compact
    def __call__(self, features: tuple, t: Float[Array, " b"], label=None) -> tuple[Float[Array, "b ..."], ...]:
        pooled = label[1].astype(t.dtype) if isinstance(label, tuple) else None
        condition = Conditioning(self.width, self.num_classes)(t, label if self.num_classes else None, pooled)
        return tuple(Head(self.width)(x, condition) for x in features)
