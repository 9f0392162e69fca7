"""Transformers on patches: DiT (Peebles & Xie 2023, 2212.09748; SiT's network too) and MMDiT (Esser et al. 2024, SD3, 2403.03206).

| | width | depth | heads | parameters at patch 2, latents of 4 channels, 1000 classes |
|---|---|---|---|---|
| DiT-S | 384 | 12 | 6 | 33 M |
| DiT-B | 768 | 12 | 12 | 130 M |
| DiT-L | 1024 | 24 | 16 | 458 M |
| DiT-XL | 1152 | 28 | 16 | 675 M |
| SD3 medium (MMDiT) | 1536 | 24 | 24 | 2.0 G |
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.dropout import Dropout
from models.embeddings import Conditioning
from models.unet import DTYPES, depth_to_space, space_to_depth


def positions(height: int, width: int, dim: int) -> Float[np.ndarray, "h*w dim"]:
    """Fixed embedding of places on a grid: sin and cos of the column in the first half of `dim`, of the row in the second (MAE, 2111.06377)."""
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    rows, columns = np.indices((height, width)).reshape(2, -1)
    parts = [np.outer(place, frequencies) for place in (columns, rows)]
    return np.concatenate([f(part) for part in parts for f in (np.sin, np.cos)], 1)


class Tokens(nn.Module):
    """What transformers are made of. dtype: of the computation, that of the parameters being float32."""

    dtype: str = "float32"

    def dense(self, features: int, zero: bool = False):
        init = nn.initializers.zeros if zero else nn.initializers.xavier_uniform()
        return nn.Dense(features, kernel_init=init, dtype=self.dtype)

    def norm(self, x, shift, scale):
        """Layer norm without parameters, modulated by the condition [B, width]."""
        h = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype)(x)
        return h * (1 + scale[:, None]) + shift[:, None]

    def modulation(self, condition, n: int, width: int):
        """n vectors [B, width], zero at the start."""
        return jnp.split(self.dense(n * width, zero=True)(condition), n, -1)

    def heads(self, x, heads: int, normalise: bool = False):
        """Queries, keys and values [B, N, heads, width/heads], queries and keys divided by their root mean square if asked."""
        q, k, v = jnp.split(self.dense(3 * x.shape[-1])(x).reshape(*x.shape[:2], 3 * heads, -1), 3, 2)
        if normalise:
            q, k = (nn.RMSNorm(epsilon=1e-6, dtype=self.dtype)(a) for a in (q, k))
        return q, k, v

    def mlp(self, x, ratio: int, dropout: float, example):
        h = Dropout(dropout)(nn.gelu(self.dense(ratio * x.shape[-1])(x)), example)
        return self.dense(x.shape[-1])(h)


class DiTBlock(Tokens):
    """Attention and MLP, each with shift and scale before and a gate after it, from the condition; gates are zero at the start (adaLN-zero)."""

    num_heads: int = 6
    mlp_ratio: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, condition, example=None):
        width = x.shape[-1]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition, 6, width)
        h = jax.nn.dot_product_attention(*self.heads(self.norm(x, shift, scale), self.num_heads)).reshape(x.shape)
        x = x + gate[:, None] * self.dense(width)(h)
        return x + mlp_gate[:, None] * self.mlp(self.norm(x, mlp_shift, mlp_scale), self.mlp_ratio, self.dropout, example)


class MMDiTBlock(Tokens):
    """A DiT block for each of two streams, tokens of the image and of the context, with one attention over both. last: of the context, which is not
    needed any more, only keys, values and queries."""

    num_heads: int = 6
    mlp_ratio: int = 4
    dropout: float = 0.0
    normalise: bool = True
    last: bool = False

    @nn.compact
    def __call__(self, x, context, condition, example=None):
        width = x.shape[-1]
        own = self.modulation(condition, 6, width)
        other = self.modulation(condition, 2 if self.last else 6, width)
        qkv = self.heads(self.norm(x, *own[:2]), self.num_heads, self.normalise)
        context_qkv = self.heads(self.norm(context, *other[:2]), self.num_heads, self.normalise)
        h = jax.nn.dot_product_attention(*(jnp.concatenate(pair, 1) for pair in zip(qkv, context_qkv))).reshape(len(x), -1, width)
        streams = [(x, h[:, : x.shape[1]], own[2:])] + [(context, h[:, x.shape[1] :], other[2:])] * (not self.last)
        streams = [(x + gate[:, None] * self.dense(width)(h), rest) for x, h, (gate, *rest) in streams]
        mlp = lambda x, shift, scale: self.mlp(self.norm(x, shift, scale), self.mlp_ratio, self.dropout, example)
        streams = [x + gate[:, None] * mlp(x, shift, scale) for x, (shift, scale, gate) in streams]
        return streams[0], context if self.last else streams[1]


class Patches(Tokens):
    """Between images and tokens: patch, width, and the checks that both transformers share."""

    width: int = 384
    depth: int = 12
    num_heads: int = 6
    patch: int = 2
    mlp_ratio: int = 4
    dropout: float = 0.0
    num_classes: int = 0
    embedding: str = "dit"
    embedding_scale: float = 1000.0
    remat: bool = False
    second_time: bool = False
    told_omega: bool = False

    def check(self, x):
        if min(self.patch, self.num_heads, self.depth) < 1:
            raise ValueError(f"patch = {self.patch}, num_heads = {self.num_heads}, depth = {self.depth}: expected at least 1 each")
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"images of shape {x.shape}: expected [B, H, W, C] with H and W divisible by the patch, {self.patch}")
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width = {self.width}: expected a multiple of num_heads = {self.num_heads} and of 4")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype '{self.dtype}': expected {' or '.join(DTYPES)}")

    def conditioning(self, num_classes: int):
        return Conditioning(
            self.width, num_classes, self.embedding, 256, self.embedding_scale, second_time=self.second_time, told_omega=self.told_omega
        )

    def embed(self, x):
        """Tokens [B, N, width] of images."""
        h = space_to_depth(x, self.patch)
        place = jnp.asarray(positions(*h.shape[1:3], self.width), self.dtype)
        return self.dense(self.width)(h.reshape(len(x), -1, h.shape[-1])) + place

    def unembed(self, tokens, condition, x):
        """Images of the shape of x; zero at the start."""
        shift, scale = self.modulation(condition, 2, self.width)
        h = self.dense(self.patch**2 * x.shape[-1], zero=True)(self.norm(tokens, shift, scale))
        return depth_to_space(h.reshape(len(x), x.shape[1] // self.patch, x.shape[2] // self.patch, -1), self.patch).astype(x.dtype)

    def block(self, cls, **options):
        shared = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "dropout": self.dropout, "dtype": self.dtype}
        made = nn.remat(cls) if self.remat else cls
        made.__name__ = cls.__name__  # the parameters have the same names with and without
        return made(**shared, **options)


class DiT(Patches):
    """A transformer on patches, modulated by time and label.

    width, depth, num_heads, mlp_ratio: see the table of this module; patch: pixels a side of a token; num_classes: as in `Conditioning`;
    embedding, embedding_scale, second_time, told_omega: as in `Conditioning` (scale 1000 for a time from 0 to 1); dropout: in the MLPs; remat:
    compute the blocks again in the backward pass, for memory. x: [B, H, W, C] -> [B, H, W, C]; t: [B]; label: [B]; example: [B] global indices, in
    training only; s: [B], None for t.
    Raises ValueError if the patch does not divide the image or num_heads the width.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        label=None,
        example: Int[Array, " b"] | None = None,
        s: Float[Array, " b"] | None = None,
        omega: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        self.check(x)
        h = self.embed(x)
        condition = self.conditioning(self.num_classes)(t, label, s=s, omega=omega)
        for _ in range(self.depth):
            h = self.block(DiTBlock)(h, condition, example)
        return self.unembed(h, condition, x)


class MMDiT(Patches):
    """A transformer on patches and the tokens of what they are conditioned on: two streams with weights of their own and one attention.

    Arguments as `DiT`, and: label_tokens: learned tokens of each class, where `label` is [B] (None: "no label"); otherwise `label` is a pair of an
    encoder's embeddings, tokens [B, L, E] and pooled [B, P], with num_classes = 0. embeddings: (L, E, P) of a model of such pairs, for which None
    stands for zeros. normalise: queries and keys by their root mean square.
    """

    label_tokens: int = 4
    embeddings: tuple[int, ...] = ()
    normalise: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        label=None,
        example: Int[Array, " b"] | None = None,
        s: Float[Array, " b"] | None = None,
        omega: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        self.check(x)
        h = self.embed(x)
        if self.embeddings and label is None:
            length, features, pooled = self.embeddings
            label = jnp.zeros((len(x), length, features)), jnp.zeros((len(x), pooled))
        if isinstance(label, tuple):
            if self.num_classes:
                raise ValueError(f"MMDiT with num_classes = {self.num_classes}: expected labels [B], or num_classes = 0 for embeddings")
            tokens, pooled = (a.astype(x.dtype) for a in label)
            condition = self.conditioning(0)(t, None, pooled, s=s, omega=omega)
        else:
            classes = jnp.full(t.shape, self.num_classes) if label is None else label
            tokens = nn.Embed(self.num_classes + 1, self.label_tokens * self.width)(classes).reshape(len(x), self.label_tokens, -1)
            condition = self.conditioning(self.num_classes)(t, label, s=s, omega=omega)
        context = self.dense(self.width)(tokens)
        for i in range(self.depth):
            h, context = self.block(MMDiTBlock, normalise=self.normalise, last=i == self.depth - 1)(h, context, condition, example)
        return self.unembed(h, condition, x)
