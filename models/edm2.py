"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, 2312.02696, config G, figure 21), for images [B, H, W, C].

No layer changes the expected mean square of what passes through it, whatever its weights have become in training: convolutions and matrices without
bias divide their weights by their size (eq. 47), SiLU, sums and concatenations are divided by what they do to two independent inputs of unit size
(eq. 81, 88, 103), and in the place of group norms an encoder block norms each pixel. The weights themselves are put back to unit size after every
step (eq. 66, `experiments.state`), by which a learning rate is one relative to them.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.convolution import convolve
from models.dropout import Dropout
from models.embeddings import random_features, sinusoidal
from models.unet import ANY_SIZE, DTYPES, attended_heights, downsample, heads_of, upsample

RESIDUAL = ATTENDED = 0.3  # shares of the branch in a sum with what it is added to
LARGEST = 256.0  # of what a block passes on, as in half precision
CHOICES = {"embedding": ("fourier", "positional"), "modulate": ("gain", "double"), "dtype": DTYPES}


def normalize(x: Float[Array, "..."], axes) -> Float[Array, "..."]:
    """x divided by its root mean square over `axes`, in single precision (eq. 37, with 1e-4 beside it)."""
    square = jnp.mean(x.astype(jnp.float32) ** 2, axes, keepdims=True)
    return x / (1e-4 + jnp.sqrt(jnp.maximum(square, 1e-30))).astype(x.dtype)  # a root has no derivative at 0


def normalized(kernel: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Of mean square 1 for every output channel."""
    return normalize(kernel, tuple(range(kernel.ndim - 1)))


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """SiLU of unit mean square for x ~ N(0, 1) (eq. 81)."""
    return nn.silu(x) / 0.596


def mix(a: Float[Array, "..."], b: Float[Array, "..."], share: float = 0.5) -> Float[Array, "..."]:
    """a + share (b - a), of unit mean square for independent a and b that are (eq. 88)."""
    return (a + share * (b - a)) / math.hypot(1 - share, share)


def join(a: Float[Array, "b h w c"], b: Float[Array, "b h w d"]) -> Float[Array, "b h w c+d"]:
    """a and b side by side, which count alike whatever their numbers of channels, of unit mean square if they are (eq. 103)."""
    c, d = a.shape[-1], b.shape[-1]
    return jnp.concatenate([math.sqrt((c + d) / (2 * c)) * a, math.sqrt((c + d) / (2 * d)) * b], -1)


class Layer(nn.Module):
    """A convolution of this size, or of size 0 a matrix over the channels, without bias, whose weights count by their direction alone. Of
    input of unit mean square so is the output, times `gain`."""

    channels: int
    size: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "... c"], gain: Float[Array, ""] | float = 1.0) -> Float[Array, "... d"]:
        shape = (self.size,) * (2 * (self.size > 0))
        kernel = self.param("kernel", nn.initializers.normal(1.0), (*shape, x.shape[-1], self.channels))
        weight = (normalized(kernel) * (gain / math.sqrt(math.prod(kernel.shape[:-1])))).astype(x.dtype)
        return convolve(x, weight, (1, 1), "SAME") if self.size else x @ weight


class Block(nn.Module):
    """SiLU, conv, modulation by the condition, SiLU, dropout, conv, mixed with a skip; then attention over pixels, mixed likewise. decoder: the
    skip's 1x1 conv comes after the branch, and no norm before it. heads: of attention, 0 for none; modulate: see `EDM2`."""

    channels: int
    decoder: bool = False
    resize: str = ""
    heads: int = 0
    dropout: float = 0.0
    modulate: str = "gain"

    @nn.compact
    def __call__(self, x, condition, example=None):
        x = {"": lambda x: x, "up": lambda x: upsample(x, (1.0, 1.0)), "down": lambda x: downsample(x, (1.0, 1.0))}[self.resize](x)
        skip = Layer(self.channels, name="skip") if x.shape[-1] != self.channels else lambda x: x
        if not self.decoder:
            x = normalize(skip(x), -1)
        h = Layer(self.channels, 3, name="first")(silu(x))
        if self.modulate == "double":  # sCM's adaptive double normalization (2410.11081, section 4.1)
            scale, shift = jnp.split(Layer(2 * self.channels, name="modulation")(condition), 2, -1)
            h = normalize(h, -1) * normalize(scale, -1)[:, None, None] + normalize(shift, -1)[:, None, None]
        else:
            gain = self.param("gain", nn.initializers.zeros, ())
            h = h * (1 + Layer(self.channels, name="modulation")(condition, gain))[:, None, None]
        h = Layer(self.channels, 3, name="second")(Dropout(self.dropout)(silu(h), example))
        x = mix(skip(x) if self.decoder else x, h, RESIDUAL)
        if self.heads:
            b, height, width, c = x.shape
            qkv = Layer(3 * c, name="qkv")(x).reshape(b, height * width, self.heads, c // self.heads, 3)
            q, k, v = jnp.moveaxis(normalize(qkv, -2), -1, 0)
            h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
            x = mix(x, Layer(c, name="projection")(h), ATTENDED)
        return jnp.clip(x, -LARGEST, LARGEST)


class EDM2(nn.Module):
    """channels: of the first level; multipliers: of each level, each half the resolution of the one before; blocks: a level; attention: the
    resolutions (heights) with attention, beside the first block of the decoder (None: 16 and 8 where the images have both,
    and else those up to 16); head_channels; dropout, at heights up to dropout_height (0: at
    all); num_classes: 0 for none, num_classes itself means "no label"; remat: compute the blocks again in the backward pass, for memory; dtype: of
    the computation, that of the parameters being float32.
    embedding (scale): of t, "fourier" by random frequencies of that standard deviation (times 2 pi), or, for continuous-time consistency,
    "positional" at scale * t; modulate: "gain", or likewise "double", in which no size of the condition is left (2410.11081, section 4.1).

    x: [B, H, W, C] -> [B, H, W, C], zero at the start; t: [B], a quarter of log sigma in the paper; label: [B]; example: [B] global indices, given
    in training only, turn dropout on. Raises ValueError if H or W cannot be halved often enough, and for unknown choices.
    """

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] | None = None
    head_channels: int = 64
    dropout: float = 0.0
    dropout_height: int = 0
    num_classes: int = 0
    embedding: str = "fourier"
    embedding_scale: float = 1.0
    modulate: str = "gain"
    remat: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        example: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        if not self.multipliers or not self.blocks > 0:
            raise ValueError(f"EDM2 with multipliers = {self.multipliers}, blocks = {self.blocks}: expected at least one of each")
        heights = {x.shape[1] >> level for level in range(len(self.multipliers))}
        published = (16, 8) if {16, 8} <= heights else (ANY_SIZE,)
        attention = published if self.attention is None else self.attention
        attention = attended_heights("EDM2", x, self.multipliers, attention)
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise ValueError(f"EDM2 {option} '{getattr(self, option)}': expected {' or '.join(choices)}")
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        block_class = nn.remat(Block) if self.remat else Block
        block_class.__name__ = "Block"  # the parameters have the same names with and without

        def block(h, width, resize="", attend=None, **options):
            height = {"up": 2 * h.shape[1], "down": h.shape[1] // 2}.get(resize, h.shape[1])
            attend = not resize and height in attention if attend is None else attend
            heads = heads_of(width, self.head_channels) if attend else 0
            dropout = self.dropout if height <= (self.dropout_height or height) else 0.0
            return block_class(channels=width, resize=resize, heads=heads, dropout=dropout, modulate=self.modulate, **options)(h, condition, example)

        if self.embedding == "fourier":
            condition = math.sqrt(2) * random_features(t * self.embedding_scale, self.channels)
        else:
            condition = math.sqrt(2) * sinusoidal(t, self.channels, self.embedding_scale)
        condition = Layer(max(widths), name="time")(condition)
        if self.num_classes:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            known = math.sqrt(self.num_classes) * jax.nn.one_hot(label, self.num_classes, dtype=condition.dtype)  # of none zeros
            condition = mix(condition, Layer(max(widths), name="label")(known))
        condition = silu(condition).astype(self.dtype)

        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)  # in the place of biases
        h = Layer(self.channels, 3, name="in")(jnp.concatenate([x, ones], -1).astype(self.dtype))
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                h = block(h, h.shape[-1], "down")
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, width)
                skips.append(h)
        h = block(h, h.shape[-1], attend=True, decoder=True)
        h = block(h, h.shape[-1], attend=False, decoder=True)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.blocks + 1):
                h = block(join(h, skips.pop()), width, decoder=True)
            if level:
                h = block(h, h.shape[-1], "up", decoder=True)
        gain = self.param("gain", nn.initializers.zeros, ())
        return Layer(x.shape[-1], 3, name="out")(h, gain).astype(x.dtype)
