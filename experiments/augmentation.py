r"""Training images that are mirrored, moved, turned and stretched, and told so to the network, which is told "not at all" when it is used.

The augmentation of EDM (Karras et al. 2022, 2206.00364, appendix F.2 and table 6), the geometric part of that of StyleGAN2-ADA (Karras et al. 2020,
2006.06676, appendix B). All that is drawn for an image becomes one affine map of the plane, by which it is sampled once, without aliasing: it is
continued by reflection, upsampled twofold by the low-pass filter of the wavelet sym6, interpolated bilinearly, and downsampled by the same filter. As
the shifts by two of that filter are orthonormal, the map that does nothing gives the image back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.unet import blur

LABELS = 9
SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125  # standard deviations: of log2 of a size or a ratio, and of a shift in image sizes

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466, 0.787641141030194,
    0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


class Transformation(NamedTuple):
    """What is done to one image, in this order, or the same of several, [B] each; zeros do nothing.

    x_flip, y_flip: 0 or 1, mirrored left-right, upside down. scale: in standard deviations of log2 of the size. angle: counter-clockwise, in radians.
    stretch: in standard deviations of log2, along the direction at `direction` radians from the right, and as much squeezed across it. right, down:
    the shift, in standard deviations, which are eighths of the image.
    """

    x_flip: Array | float = 0.0
    y_flip: Array | float = 0.0
    scale: Array | float = 0.0
    angle: Array | float = 0.0
    stretch: Array | float = 0.0
    direction: Array | float = 0.0
    right: Array | float = 0.0
    down: Array | float = 0.0


def draw(key, p: float) -> Transformation:
    """One image's transformation: a mirror image by a coin, whatever p is; each of the others with probability p, of the mirror a half."""
    x_key, y_key, scale_key, angle_key, stretch_key, shift_key = jax.random.split(key, 6)

    def maybe(key, value, chance=p):
        happens, own = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(happens, chance), value(own), 0.0)

    circle = lambda key: jax.random.uniform(key, minval=-np.pi, maxval=np.pi)
    coin = lambda key: jax.random.bernoulli(key).astype(jnp.float32)
    stretch_key, direction_key = jax.random.split(stretch_key)
    right, down = maybe(shift_key, lambda key: jax.random.normal(key, (2,)))
    return Transformation(
        x_flip=coin(x_key),
        y_flip=maybe(y_key, coin),
        scale=maybe(scale_key, jax.random.normal),
        angle=maybe(angle_key, circle),
        stretch=maybe(stretch_key, jax.random.normal),
        direction=maybe(direction_key, circle, 0.5),
        right=right,
        down=down,
    )


def labels(made: Transformation) -> Float[Array, "9"]:
    """What the network is told of one image's transformation; zeros if nothing was done."""
    turned = [jnp.cos(made.angle) - 1, jnp.sin(made.angle)]
    stretched = [made.stretch * jnp.cos(made.direction), made.stretch * jnp.sin(made.direction)]
    return jnp.stack([jnp.asarray(a) for a in (made.x_flip, made.y_flip, made.scale, *turned, *stretched, made.right, made.down)])


def rotation(angle) -> Float[Array, "2 2"]:
    """Of vectors (right, down), clockwise as they are seen."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[c, -s], [s, c]])


def warp(image: Float[Array, "h w c"], made: Transformation) -> Float[Array, "h w c"]:
    """One image, transformed; what comes from further than its own size beyond its edges is 0."""
    height, width, _ = image.shape
    image = jnp.where(made.x_flip > 0, image[:, ::-1], image)
    image = jnp.where(made.y_flip > 0, image[::-1], image)

    # from a place of the result to where its value comes from: A (place - shift), of (right, down) from the centre in pixels
    ratio = 2.0 ** (STRETCH * made.stretch)
    squeeze = rotation(-made.direction) @ jnp.diag(jnp.array([1 / ratio, ratio])) @ rotation(made.direction)
    back = 2.0 ** (-SCALE * made.scale) * rotation(made.angle) @ squeeze
    shift = SHIFT * jnp.array([made.right * width, made.down * height])

    padded = jnp.pad(image, ((height - 1,) * 2, (width - 1,) * 2, (0, 0)), "reflect")
    fine = blur(padded[None], SYM6[::-1], (6, 5), up=2)[0]  # value 2 i is in the place of pixel i
    rows, columns = jnp.arange(-5, 2 * height + 5) / 2, jnp.arange(-5, 2 * width + 5) / 2  # what the filter below needs
    centre = jnp.array([width - 1, height - 1]) / 2
    places = jnp.stack(jnp.meshgrid(columns, rows), -1) - centre
    right, down = jnp.moveaxis(jnp.matmul(places - shift, back.T, precision="highest") + centre, -1, 0)
    sources = [2 * (down + height - 1), 2 * (right + width - 1)]
    sampled = jax.vmap(lambda channel: jax.scipy.ndimage.map_coordinates(channel, sources, order=1, mode="constant"), -1, -1)(fine)
    result = blur(sampled[None], SYM6, (0, 0), down=2)[0]

    moved = jnp.stack([jnp.asarray(a) for a in made[2:]]).any()
    return jnp.where(moved, result, image)


def augment(keys, x: Float[Array, "b h w c"], p: float) -> tuple[Float[Array, "b h w c"], Float[Array, "b 9"]]:
    """Images in any scale, transformed with probability p as keys [B] say, one for each, and the labels of what was done.

    p: 0 to 1, EDM's is 0.12 on CIFAR-10; 0 does nothing, above 0 half of the images are mirrored.
    """
    if p == 0:
        return x, jnp.zeros((len(x), LABELS), x.dtype)
    made = jax.vmap(lambda key: draw(key, p))(keys)
    return jax.vmap(warp)(x, made), jax.vmap(labels)(made)
