"""The autoencoder of latent diffusion (Rombach et al. 2022, 2112.10752, appendix G.1; their AutoencoderKL), between images and small latents.

| | channels, multipliers | blocks | latents | parameters |
|---|---|---|---|---|
| kl-f8 (the VAE of Stable Diffusion, DiT and SiT), the defaults | 128, (1, 2, 4, 4) | 2 | 4, at an eighth of the resolution | 83,653,863 |
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.unet import DTYPES, Attention, Layers, ResBlock, depth_to_space, space_to_depth, upsample


class Half(Layers):
    """What encoder and decoder share; arguments as `KLAutoencoder`."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    patch: int = 1

    def block(self, h, channels: int):
        return ResBlock(channels=channels, epsilon=self.epsilon, dtype=self.dtype)(h)

    def middle(self, h):
        h = self.block(h, h.shape[-1])
        h = Attention(head_channels=0, epsilon=self.epsilon, dtype=self.dtype)(h)
        return self.block(h, h.shape[-1])


class Encoder(Half):
    """Images [B, H, W, C] -> mean and log-variance of latents, [B, h, w, 2 c]."""

    @nn.compact
    def __call__(self, x):
        h = self.conv(self.channels)(space_to_depth(x, self.patch))
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = self.conv(h.shape[-1], strides=2)(h)  # of an even size, "SAME" pads below and to the right alone, as theirs
            for _ in range(self.blocks):
                h = self.block(h, self.channels * multiplier)
        h = self.conv(2 * self.latent_channels)(nn.silu(self.norm(self.middle(h))))
        return self.conv(2 * self.latent_channels, 1)(h)


class Decoder(Half):
    """Latents [B, h, w, c] -> images [B, H, W, C]."""

    @nn.compact
    def __call__(self, z):
        h = self.conv(self.latent_channels, 1)(z)
        h = self.middle(self.conv(self.channels * self.multipliers[-1])(h))
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = self.block(h, self.channels * multiplier)
            if level:
                h = self.conv(h.shape[-1])(upsample(h, (1.0, 1.0)))
        return depth_to_space(self.conv(self.image_channels * self.patch**2)(nn.silu(self.norm(h))), self.patch)


class KLAutoencoder(Half):
    """A convolutional autoencoder with a diagonal Gaussian posterior q(z | x). It is no function of a time, so no network of a Denoiser.

    channels: of the first level; multipliers: of each level, each half the resolution of the one before; blocks: residual blocks a level of the
    encoder, one more of the decoder; latent_channels, image_channels; patch: the first level sees squares of so many pixels as one.
    Raises ValueError for images of other channels, or that cannot be halved often enough.
    """

    epsilon: float = 1e-6

    def setup(self):
        names = ("epsilon", "dtype", "channels", "multipliers", "blocks", "latent_channels", "image_channels", "patch")
        options = {name: getattr(self, name) for name in names}
        self.encoder, self.decoder = Encoder(**options), Decoder(**options)

    def encode(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h/f w/f z"], Float[Array, "b h/f w/f z"]]:
        """Mean and log-variance of q(z | x), the latter within [-30, 20], where f = patch 2^(levels - 1)."""
        if min(self.patch, self.blocks, self.latent_channels, len(self.multipliers)) < 1 or self.dtype not in DTYPES:
            raise ValueError(
                f"KLAutoencoder with patch = {self.patch}, blocks = {self.blocks}, latent_channels = {self.latent_channels}, multipliers = "
                f"{self.multipliers}, dtype = '{self.dtype}': expected at least one of each, and {' or '.join(DTYPES)}"
            )
        factor = self.patch * 2 ** (len(self.multipliers) - 1)
        if x.ndim != 4 or x.shape[3] != self.image_channels or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"images of shape {x.shape}: this autoencoder expects [B, H, W, {self.image_channels}] with H and W divisible by {factor} "
                "(model.image_channels, model.multipliers and model.patch)"
            )
        mean, log_variance = jnp.split(self.encoder(x.astype(self.dtype)).astype(x.dtype), 2, -1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, z: Float[Array, "b h/f w/f z"]) -> Float[Array, "b h w c"]:
        """Images of latents."""
        return self.decoder(z.astype(self.dtype)).astype(z.dtype)

    def __call__(self, x: Float[Array, "b h w c"], noise: Float[Array, "b h/f w/f z"] | float = 0.0):
        """The image that a draw mean + std noise decodes to, and the draw's mean and log-variance."""
        mean, log_variance = self.encode(x)
        return self.decode(mean + jnp.exp(0.5 * log_variance) * noise), mean, log_variance
