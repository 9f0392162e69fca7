"""A classifier of noised images, for classifier guidance: the encoder half of the U-Net and attention pooling (ADM, 2105.05233, section 4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.embeddings import Conditioning
from models.unet import Attention, Layers, ResBlock, attended_heights, heads_of, space_to_depth


class AttentionPool(Layers):
    """Pixels [B, H, W, C] -> [B, features]: their mean attends to them and to itself, at learned positions (CLIP, 2103.00020, section 2.4)."""

    features: int = 10
    head_channels: int = 64

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        heads = heads_of(c, self.head_channels)
        tokens = x.reshape(b, h * w, c)
        tokens = jnp.concatenate([jnp.mean(tokens, 1, keepdims=True), tokens], 1)
        tokens = tokens + self.param("positions", nn.initializers.normal(c**-0.5), (h * w + 1, c)).astype(x.dtype)
        split = lambda a: a.reshape(b, -1, heads, c // heads)
        query, (key, value) = self.dense(c)(tokens[:, :1]), jnp.split(self.dense(2 * c)(tokens), 2, -1)
        pooled = jax.nn.dot_product_attention(split(query), split(key), split(value))
        return self.dense(self.features)(pooled.reshape(b, c))


class NoisyClassifier(Layers):
    """Logits [B, num_classes] of x [B, H, W, C] at t [B], about 0 to 1. No function that a Denoiser could hold.

    channels, multipliers, blocks, attention, patch, embedding, embedding_scale, head_channels: as of `models.unet.UNet`, whose resolution changes by
    "block" here. label, example: not looked at. Raises ValueError if H or W cannot be halved often enough, or for attention at a
    height that no level has.
    """

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    dropout: float = 0.0
    num_classes: int = 10
    patch: int = 1
    embedding: str = "smooth"
    embedding_scale: float = 100.0
    head_channels: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, " b"], label=None, example=None) -> Float[Array, "b classes"]:
        attention = attended_heights("classifier", x, self.multipliers, self.attention, self.patch)
        condition = Conditioning(4 * self.channels, 0, self.embedding, self.channels, self.embedding_scale)(t).astype(self.dtype)
        common = {"epsilon": self.epsilon, "dtype": self.dtype}
        block = lambda h, channels, resize="": ResBlock(channels=channels, dropout=self.dropout, resize=resize, **common)(h, condition, example)
        attend = lambda h: Attention(head_channels=self.head_channels, **common)(h)
        h = self.conv(self.channels)(space_to_depth(x, self.patch).astype(self.dtype))
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = block(h, h.shape[-1], "down")
            for _ in range(self.blocks):
                h = block(h, self.channels * multiplier)
                if h.shape[1] in attention:
                    h = attend(h)
        h = block(h, h.shape[-1])
        h = attend(h) if attention else h
        h = nn.silu(self.norm(block(h, h.shape[-1])))
        return AttentionPool(features=self.num_classes, head_channels=self.head_channels, **common)(h).astype(x.dtype)
