"""The U-Net of diffusion models for images [B, H, W, C]: one module, of which the published ones are choices.

| | DDPM (2006.11239) | DDPM++ (2011.13456) | NCSN++ (2011.13456) | ADM (2105.05233) |
|---|---|---|---|---|
| embedding (scale) | positional (1000) | positional (1000) | fourier (16, of log sigma) | dit (1000) |
| modulate: how the condition enters a block | shift | shift | shift | scale_shift |
| resample: how the resolution changes | conv | block_projected | block_projected | block |
| kernel of the resampling | | (1, 1) | (1, 3, 3, 1) | (1, 1) |
| rescale: sums of two by 1/sqrt(2) | no | yes | yes | no |
| grow_input, grow_output | none | none | residual, none | none |
| decoder_attention | every | last | last | every |
| head_channels (0: one head) | 0 | 0 | 0 | 64 |

Of modulate "double", scale and shift are normalised over channels (`pixel_norm`): sCM's adaptive double normalization (2410.11081, section 4.1).
The defaults are none of them: a small network whose embedding is smooth in time, for which adaptive solvers need a fraction of the steps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.convolution import convolve
from models.dropout import Dropout
from models.embeddings import Conditioning, fourier_features


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h/p w/p p*p*c"]:
    """Each patch x patch square as one pixel of as many more channels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3).reshape(b, h // patch, w // patch, patch**2 * c)


def depth_to_space(x: Float[Array, "b h w p*p*c"], patch: int) -> Float[Array, "b h*p w*p c"]:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, patch, patch, c // patch**2).swapaxes(2, 3).reshape(b, h * patch, w * patch, c // patch**2)


def blur(x: Float[Array, "b h w c"], kernel: tuple[float, ...], pad: tuple[int, int], up: int = 1, down: int = 1) -> Float[Array, "b h' w' c"]:
    """Along both axes: `up` - 1 zeros put after each value, `pad` zeros at the ends, the FIR filter `kernel` (of sum `up`), every `down`-th value."""
    taps = up * np.array(kernel) / np.sum(kernel)
    for axis in (1, 2):
        ends = [(pad[0], pad[1] + up - 1, up - 1) if a == axis else (0, 0, 0) for a in range(4)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), ends)
        length = x.shape[axis] - len(taps) + 1
        x = sum(jnp.asarray(tap, x.dtype) * jax.lax.slice_in_dim(x, i, i + length, down, axis) for i, tap in enumerate(taps))
    return x


def upsample(x: Float[Array, "b h w c"], kernel: tuple[float, ...]) -> Float[Array, "b 2*h 2*w c"]:
    """Twice the resolution: the nearest value for kernel (1, 1), NCSN++'s FIR filter for (1, 3, 3, 1) (StyleGAN2, 1912.04958)."""
    return blur(x, kernel, ((len(kernel) - 1) // 2 + 1, (len(kernel) - 2) // 2), up=2)


def downsample(x: Float[Array, "b h w c"], kernel: tuple[float, ...]) -> Float[Array, "b h/2 w/2 c"]:
    """Half the resolution: the mean of squares for kernel (1, 1)."""
    return blur(x, kernel, ((len(kernel) - 1) // 2, (len(kernel) - 2) // 2), down=2)


def pixel_norm(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Of mean square 1 over the channels (1710.10196, section 4.2)."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-8)


ANY_SIZE, LOW = -1, 16  # for `attention`: the levels up to this height, and the lowest one, whatever the size of the images is


def attended_heights(
    name: str, x: Float[Array, "b h w c"], multipliers: tuple[int, ...], attention: tuple[int, ...], patch: int = 1
) -> tuple[int, ...]:
    """The heights of the levels with attention: `attention` itself, in which `ANY_SIZE` stands for the levels up to `LOW`.

    Raises ValueError, with its name, for a U-Net whose images x cannot be halved so often, or with attention at a height that no level has."""
    halvings = patch * 2 ** (len(multipliers) - 1)
    if x.ndim != 4 or x.shape[1] % halvings or x.shape[2] % halvings:
        raise ValueError(f"images of shape {x.shape}: this {name} expects [B, H, W, C] with H and W divisible by {halvings}")
    heights = [x.shape[1] // patch >> level for level in range(len(multipliers))]
    if not set(attention) <= {ANY_SIZE, *heights}:
        raise ValueError(
            f"attention at {attention}: this {name} has the resolutions {', '.join(map(str, heights))}; expected some of them, or "
            f"{ANY_SIZE}, which is those up to {LOW}: --config.model.attention='({ANY_SIZE},)'"
        )
    low = {h for h in heights if h <= LOW or h == heights[-1]} if ANY_SIZE in attention else set()
    return tuple(sorted(low | set(attention) - {ANY_SIZE}))


def heads_of(channels: int, head_channels: int) -> int:
    """The number of heads of attention that divides the channels, of about `head_channels` each; of 0 one."""
    return max(h for h in range(1, max(channels // (head_channels or channels), 1) + 1) if channels % h == 0)


class Layers(nn.Module):
    """What the parts of a U-Net are made of. epsilon: of GroupNorm; dtype: of the computation, that of the parameters being float32."""

    epsilon: float = 1e-5
    dtype: str = "float32"

    def norm(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """GroupNorm of up to 32 groups of at least 4 channels."""
        groups = max(g for g in range(1, min(32, x.shape[-1] // 4 or 1) + 1) if x.shape[-1] % g == 0)
        return nn.GroupNorm(groups, epsilon=self.epsilon, dtype=self.dtype)(x)

    def conv(self, channels: int, kernel: int = 3, zero: bool = False, **options):
        """A convolution, its kernel zero at the start if `zero`."""
        init = nn.initializers.zeros if zero else nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        return nn.Conv(channels, (kernel, kernel), kernel_init=init, dtype=self.dtype, conv_general_dilated=convolve, **options)

    def dense(self, channels: int, **options):
        return nn.Dense(channels, dtype=self.dtype, **options)


class ResBlock(Layers):
    """norm, SiLU, conv; norm, shift (and scale) by the condition if any, SiLU, dropout, conv (zero at the start); plus a skip, where the number of
    channels changes by a 1x1 conv. resize: of both ways, before their first conv; project: a 1x1 conv in a resized skip too."""

    channels: int = 32
    dropout: float = 0.0
    modulate: str = "scale_shift"
    rescale: bool = False
    resize: str = ""
    project: bool = False
    kernel: tuple[float, ...] = (1.0, 1.0)

    @nn.compact
    def __call__(self, x, condition=None, example=None):
        change = {"": lambda x: x, "up": lambda x: upsample(x, self.kernel), "down": lambda x: downsample(x, self.kernel)}[self.resize]
        h = self.conv(self.channels)(change(nn.silu(self.norm(x))))
        if condition is None:
            h = nn.silu(self.norm(h))
        elif self.modulate == "shift":
            h = nn.silu(self.norm(h + self.dense(self.channels)(condition)[:, None, None]))
        else:
            scale, shift = jnp.split(self.dense(2 * self.channels)(condition)[:, None, None], 2, -1)
            scale, shift = (pixel_norm(scale), pixel_norm(shift)) if self.modulate == "double" else (1 + scale, shift)
            h = nn.silu(self.norm(h) * scale + shift)
        h = self.conv(self.channels, zero=True)(Dropout(self.dropout)(h, example))
        x = change(x)
        if x.shape[-1] != self.channels or (self.resize and self.project):
            x = self.conv(self.channels, 1)(x)
        return (x + h) * (2**-0.5 if self.rescale else 1)


class Attention(Layers):
    """Self-attention over pixels, plus a skip; the output projection is zero at the start. head_channels: channels a head; 0 for one head."""

    head_channels: int = 64
    rescale: bool = False

    @nn.compact
    def __call__(self, x):
        b, height, width, c = x.shape
        heads = heads_of(c, self.head_channels)
        qkv = self.dense(3 * c)(self.norm(x)).reshape(b, height * width, 3, heads, c // heads)
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return (x + self.dense(c, kernel_init=nn.initializers.zeros)(h.reshape(x.shape))) * (2**-0.5 if self.rescale else 1)


DTYPES = ("float32", "bfloat16")
CHOICES = {
    "modulate": ("scale_shift", "double", "shift"),
    "resample": ("conv", "block", "block_projected"),
    "grow_input": ("none", "residual", "skip"),
    "grow_output": ("none", "residual", "skip"),
    "decoder_attention": ("every", "last"),
    "dtype": DTYPES,
}


class UNet(Layers):
    """A U-Net with skip connections between equal resolutions.

    channels: of the first level; multipliers: of each level, each half the resolution of the one before; blocks: residual blocks a level;
    attention: the resolutions (heights) with attention, of which -1 stands for all up to 16, for images of any size; dropout; num_classes,
    embedding, embedding_scale, augment_dim, second_time, told_omega: as in `Conditioning`; frequencies: of `fourier_features` of x; patch:
    the first level sees squares of so many pixels as one; remat: compute the residual blocks again in the backward pass, for memory; the
    others: see the table of this module.

    x: [B, H, W, C] -> [B, H, W, C]; t: [B], about 0 to 1; label: [B]; example: [B] global indices, given in training only, turn dropout on;
    augmented: [B, augment_dim], given in training only; s: [B], None for t; omega: [B], None for 1.
    Raises ValueError if H or W cannot be halved often enough, and for unknown choices.
    """

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    dropout: float = 0.0
    num_classes: int = 0
    frequencies: tuple[float, ...] = ()
    patch: int = 1
    embedding: str = "smooth"
    embedding_scale: float = 100.0
    modulate: str = "scale_shift"
    resample: str = "conv"
    kernel: tuple[float, ...] = (1.0, 1.0)
    rescale: bool = False
    grow_input: str = "none"
    grow_output: str = "none"
    decoder_attention: str = "every"
    head_channels: int = 64
    remat: bool = False
    augment_dim: int = 0
    second_time: bool = False
    told_omega: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        label=None,
        example: Int[Array, " b"] | None = None,
        augmented: Float[Array, "b a"] | None = None,
        s: Float[Array, " b"] | None = None,
        omega: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        if self.patch < 1 or not self.multipliers or not self.blocks > 0:
            raise ValueError(
                f"UNet with patch = {self.patch}, multipliers = {self.multipliers}, blocks = {self.blocks}: expected at least one of each"
            )
        attention = attended_heights("U-Net", x, self.multipliers, self.attention, self.patch)
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise ValueError(f"UNet {option} '{getattr(self, option)}': expected {' or '.join(choices)}")
        if len(self.kernel) % 2 or not sum(self.kernel) > 0:
            raise ValueError(f"UNet kernel {self.kernel}: expected an even number of taps, of positive sum")
        conditioning = Conditioning(
            4 * self.channels,
            self.num_classes,
            self.embedding,
            self.channels,
            self.embedding_scale,
            self.augment_dim,
            self.second_time,
            self.told_omega,
        )
        condition = conditioning(t, label, augmented=augmented, s=s, omega=omega)
        common = {"epsilon": self.epsilon, "dtype": self.dtype}
        shared = {"rescale": self.rescale, **common}
        block_class = nn.remat(ResBlock) if self.remat else ResBlock
        block_class.__name__ = "ResBlock"  # the parameters have the same names with and without

        def block(h, width, resize=""):
            projected = self.resample == "block_projected"
            module = block_class(
                channels=width, dropout=self.dropout, modulate=self.modulate, resize=resize, project=projected, kernel=self.kernel, **shared
            )
            return module(h, condition, example)

        def attend(h):
            return Attention(head_channels=self.head_channels, **shared)(h) if h.shape[1] in attention else h

        def join(a, b):
            return (a + b) * (2**-0.5 if self.rescale else 1)

        pyramid = space_to_depth(fourier_features(x, self.frequencies), self.patch).astype(self.dtype)
        h = self.conv(self.channels)(pyramid)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = self.conv(h.shape[-1], strides=2)(h) if self.resample == "conv" else block(h, h.shape[-1], "down")
                if self.grow_input == "residual":
                    k = len(self.kernel)  # blurred, then convolved with stride 2
                    blurred = blur(pyramid, self.kernel, ((k - 2 + 3) // 2, (k - 2 + 2) // 2))
                    h = pyramid = join(self.conv(h.shape[-1], strides=2, padding="VALID")(blurred), h)
                elif self.grow_input == "skip":
                    pyramid = downsample(pyramid, self.kernel)
                    h = h + self.conv(h.shape[-1], 1)(pyramid)
                skips.append(h)
            for _ in range(self.blocks):
                h = attend(block(h, self.channels * multiplier))
                skips.append(h)

        h = block(h, h.shape[-1])
        if attention:
            h = Attention(head_channels=self.head_channels, **shared)(h)
        h = block(h, h.shape[-1])

        out, grown = x.shape[-1] * self.patch**2, None
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), self.channels * multiplier)
                if self.decoder_attention == "every" or i == self.blocks:
                    h = attend(h)
            if self.grow_output == "skip":
                new = self.conv(out, zero=True)(nn.silu(self.norm(h)))
                grown = new if grown is None else upsample(grown, self.kernel) + new
            elif self.grow_output == "residual":
                if grown is None:
                    grown = self.conv(h.shape[-1])(nn.silu(self.norm(h)))
                else:
                    h = grown = join(self.conv(h.shape[-1])(upsample(grown, self.kernel)), h)
            if level:
                if self.resample == "conv":
                    h = self.conv(h.shape[-1])(upsample(h, (1.0, 1.0)))
                else:
                    h = block(h, h.shape[-1], "up")
        if self.grow_output != "skip":
            grown = self.conv(out, zero=True)(nn.silu(self.norm(h)))
        return depth_to_space(grown, self.patch).astype(x.dtype)
