"""FID's InceptionV3: the network of TensorFlow's graph of 2015-12-05 (Szegedy et al. 2015, 1512.00567; Heusel et al. 2017, 1706.08500), for features.

It differs from the published network as its graph does: average pools leave out the padding, and that of the last block is a maximum. Batch
normalization, of fixed statistics here, is part of each convolution. Names are those of torchvision, which pytorch-fid and torch-fidelity share.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SIZE = 299  # pixels that the network sees
RESIZES = ("tf1", "torch")


def interpolation(size: int, resize: str) -> np.ndarray:
    """The matrix [299, size] that resizes a row bilinearly, without antialiasing. "tf1": pixel i of the result lies at i size/299 (TensorFlow 1,
    align_corners=False); "torch": at (i + 1/2) size/299 - 1/2, its centre."""
    place = np.arange(SIZE) * size / SIZE if resize == "tf1" else np.maximum((np.arange(SIZE) + 0.5) * size / SIZE - 0.5, 0.0)
    low = np.minimum(np.floor(place).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((SIZE, size))
    np.add.at(matrix, (np.arange(SIZE), low), 1.0 - (place - low))
    np.add.at(matrix, (np.arange(SIZE), high), place - low)
    return matrix.astype(np.float32)


def prepare(images: Float[Array, "b h w c"], resize: str) -> Float[Array, "b 299 299 3"]:
    """What the network sees of images of 0 to 255, grey ones as colours: resized, then (x - 128)/128 as in the graph ("tf1", as torch-fidelity)
    or 2 x/255 - 1 ("torch", as pytorch-fid). Raises ValueError for another `resize` or number of channels."""
    if resize not in RESIZES or images.shape[-1] not in (1, 3):
        raise ValueError(f"resize = '{resize}' of images {images.shape[1:]}: expected {' or '.join(RESIZES)} and 1 or 3 channels")
    rows, columns = (interpolation(size, resize) for size in images.shape[1:3])
    x = jnp.asarray(images, jnp.float32)
    x = jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)
    x = (x - 128.0) / 128.0 if resize == "tf1" else 2.0 * x / 255.0 - 1.0
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def average(x):
    return nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)


def maximum(x):
    return nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))


halve = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


def conv(x, name: str, width: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, pad: tuple[int, int] = (0, 0)):
    """A convolution with its normalization, and a ReLU."""
    pads = [(p, p) for p in pad]
    return nn.relu(nn.Conv(width, kernel, stride, pads, precision=jax.lax.Precision.HIGHEST, name=name)(x))


class A(nn.Module):
    """35 x 35 pixels."""

    pool: int

    @nn.compact
    def __call__(self, x):
        five = conv(conv(x, "branch5x5_1", 48), "branch5x5_2", 64, (5, 5), pad=(2, 2))
        three = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3), pad=(1, 1))
        three = conv(three, "branch3x3dbl_3", 96, (3, 3), pad=(1, 1))
        return jnp.concatenate([conv(x, "branch1x1", 64), five, three, conv(average(x), "branch_pool", self.pool)], -1)


class B(nn.Module):
    """35 to 17 pixels."""

    @nn.compact
    def __call__(self, x):
        double = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3), pad=(1, 1))
        double = conv(double, "branch3x3dbl_3", 96, (3, 3), 2)
        return jnp.concatenate([conv(x, "branch3x3", 384, (3, 3), 2), double, halve(x)], -1)


class C(nn.Module):
    """17 x 17 pixels."""

    width: int

    @nn.compact
    def __call__(self, x):
        across, down = {"kernel": (1, 7), "pad": (0, 3)}, {"kernel": (7, 1), "pad": (3, 0)}
        seven = conv(conv(x, "branch7x7_1", self.width), "branch7x7_2", self.width, **across)
        seven = conv(seven, "branch7x7_3", 192, **down)
        double = conv(x, "branch7x7dbl_1", self.width)
        for number, (width, along) in enumerate([(self.width, down), (self.width, across), (self.width, down), (192, across)], 2):
            double = conv(double, f"branch7x7dbl_{number}", width, **along)
        return jnp.concatenate([conv(x, "branch1x1", 192), seven, double, conv(average(x), "branch_pool", 192)], -1)


class D(nn.Module):
    """17 to 8 pixels."""

    @nn.compact
    def __call__(self, x):
        three = conv(conv(x, "branch3x3_1", 192), "branch3x3_2", 320, (3, 3), 2)
        seven = conv(conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, (1, 7), pad=(0, 3))
        seven = conv(conv(seven, "branch7x7x3_3", 192, (7, 1), pad=(3, 0)), "branch7x7x3_4", 192, (3, 3), 2)
        return jnp.concatenate([three, seven, halve(x)], -1)


class E(nn.Module):
    """8 x 8 pixels."""

    last: bool

    @nn.compact
    def __call__(self, x):
        def split(x, name):
            return [conv(x, f"{name}a", 384, (1, 3), pad=(0, 1)), conv(x, f"{name}b", 384, (3, 1), pad=(1, 0))]

        three = split(conv(x, "branch3x3_1", 384), "branch3x3_2")
        double = split(conv(conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, (3, 3), pad=(1, 1)), "branch3x3dbl_3")
        pooled = (maximum if self.last else average)(x)
        return jnp.concatenate([conv(x, "branch1x1", 320), *three, *double, conv(pooled, "branch_pool", 192)], -1)


class Inception(nn.Module):
    """Images [B, H, W, 1 or 3] of 0 to 255 -> pool_3 [B, 2048] and the logits [B, 1008] without the bias of the last layer, as the Inception score
    is computed from the graph (torch-fidelity's `logits_unbiased`). resize: see `prepare`."""

    resize: str = "tf1"

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        x = prepare(images, self.resize)
        x = conv(conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2), "Conv2d_2a_3x3", 32, (3, 3))
        x = halve(conv(x, "Conv2d_2b_3x3", 64, (3, 3), pad=(1, 1)))
        x = halve(conv(conv(x, "Conv2d_3b_1x1", 80), "Conv2d_4a_3x3", 192, (3, 3)))
        for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = A(pool, name=name)(x)
        x = B(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = C(width, name=name)(x)
        x = E(True, name="Mixed_7c")(E(False, name="Mixed_7b")(D(name="Mixed_7a")(x)))
        pool = x.mean((1, 2))
        return pool, nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")(pool)
