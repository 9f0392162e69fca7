"""The U-Net of diffusion models for images [B, H, W, C] (Ho et al. 2020, 2006.11239; Dhariwal & Nichol 2021, 2105.05233)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.dropout import Dropout
from models.embeddings import Conditioning, fourier_features


def norm(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """GroupNorm of up to 32 groups of at least 4 channels."""
    groups = max(g for g in range(1, min(32, x.shape[-1] // 4 or 1) + 1) if x.shape[-1] % g == 0)
    return nn.GroupNorm(groups, epsilon=1e-5)(x)


def conv(channels: int, kernel: int = 3, zero: bool = False, **options):
    """A convolution, its kernel zero at the start if `zero`."""
    init = nn.initializers.zeros if zero else nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
    return nn.Conv(channels, (kernel, kernel), kernel_init=init, **options)


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h/p w/p p*p*c"]:
    """Each patch x patch square as one pixel of as many more channels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3).reshape(b, h // patch, w // patch, patch**2 * c)


def depth_to_space(x: Float[Array, "b h w p*p*c"], patch: int) -> Float[Array, "b h*p w*p c"]:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, patch, patch, c // patch**2).swapaxes(2, 3).reshape(b, h * patch, w * patch, c // patch**2)


class ResBlock(nn.Module):
    """norm, SiLU, conv; norm, scale and shift by the condition, SiLU, dropout, conv (zero at the start); plus a skip."""

    channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, condition, example=None):
        h = conv(self.channels)(nn.silu(norm(x)))
        scale, shift = jnp.split(nn.Dense(2 * self.channels)(condition)[:, None, None], 2, -1)
        h = nn.silu(norm(h) * (1 + scale) + shift)
        h = conv(self.channels, zero=True)(Dropout(self.dropout)(h, example))
        return h + (x if x.shape[-1] == self.channels else conv(self.channels, 1)(x))


class Attention(nn.Module):
    """Self-attention over pixels, plus a skip; the output projection is zero at the start. head_channels: channels a head."""

    head_channels: int = 64

    @nn.compact
    def __call__(self, x):
        b, height, width, c = x.shape
        heads = max(h for h in range(1, max(c // self.head_channels, 1) + 1) if c % h == 0)
        qkv = nn.Dense(3 * c)(norm(x)).reshape(b, height * width, 3, heads, c // heads)
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return x + nn.Dense(c, kernel_init=nn.initializers.zeros)(h.reshape(x.shape))


class UNet(nn.Module):
    """A U-Net with skip connections between equal resolutions.

    channels: of the first level; multipliers: of each level, each half the resolution of the one before; blocks: residual blocks a level;
    attention: the resolutions (heights) with attention; dropout; num_classes: as in `Conditioning`; frequencies: of `fourier_features` of x;
    patch: the first level sees squares of so many pixels as one.

    x: [B, H, W, C] -> [B, H, W, C]; t: [B], about 0 to 1; label: [B]; example: [B] global indices, given in training only, turn dropout on.
    Raises ValueError if H or W cannot be halved often enough.
    """

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    dropout: float = 0.0
    num_classes: int = 0
    frequencies: tuple[float, ...] = ()
    patch: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], label=None, example: Int[Array, " b"] | None = None
    ) -> Float[Array, "b h w c"]:
        halvings = self.patch * 2 ** (len(self.multipliers) - 1)
        if x.ndim != 4 or x.shape[1] % halvings or x.shape[2] % halvings:
            raise ValueError(f"images of shape {x.shape}: this U-Net expects [B, H, W, C] with H and W divisible by {halvings}")
        heights = [x.shape[1] // self.patch >> level for level in range(len(self.multipliers))]
        if not set(self.attention) <= set(heights):
            raise ValueError(f"attention at {self.attention}: this U-Net has the resolutions {', '.join(map(str, heights))}")
        condition = Conditioning(4 * self.channels, self.num_classes)(t, label)

        def block(h, width):
            h = ResBlock(width, self.dropout)(h, condition, example)
            return Attention()(h) if h.shape[1] in self.attention else h

        h = conv(self.channels)(space_to_depth(fourier_features(x, self.frequencies), self.patch))
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = conv(h.shape[-1], strides=2)(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, self.channels * multiplier)
                skips.append(h)

        h = ResBlock(h.shape[-1], self.dropout)(h, condition, example)
        if self.attention:
            h = Attention()(h)
        h = ResBlock(h.shape[-1], self.dropout)(h, condition, example)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), self.channels * multiplier)
            if level:
                h = jnp.repeat(jnp.repeat(h, 2, 1), 2, 2)
                h = conv(h.shape[-1])(h)
        return depth_to_space(conv(x.shape[-1] * self.patch**2, zero=True)(nn.silu(norm(h))), self.patch)
