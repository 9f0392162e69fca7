"""How uncertain a loss is at each time, learned beside a network (EDM2, Karras et al. 2024, 2312.02696, section 2.2)."""

import flax.linen as nn
from jaxtyping import Array, Float

from models.embeddings import random_features


class Uncertainty(nn.Module):
    """w(t) of times [B], as the network is told them, in exp(w) loss - w, by which every time's loss comes to count alike; 0 at the start."""

    features: int = 64

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros)(random_features(t, self.features))[:, 0]
