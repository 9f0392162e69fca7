"""The autoencoder's network: its published size, its shapes, and what it refuses (parity with diffusers': test_network_peers.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, latent_channels=3, image_channels=1)
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 12, 1))


def test_published_size():
    """kl-f8 of Stable Diffusion, to the last parameter; 256 x 256 x 3 becomes 32 x 32 x 4."""
    net, x = models.KLAutoencoder(), jnp.zeros((1, 256, 256, 3))
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    assert sum(a.size for a in jax.tree.leaves(params)) == 83_653_863
    assert jax.eval_shape(lambda p: net.apply(p, x, method="encode"), params)[0].shape == (1, 32, 32, 4)


@pytest.mark.slow
def test_shapes_and_draws():
    """Encoding and decoding are each other's shapes; without noise the mean is decoded; log-variances are clipped; a patch halves the latents."""
    net = models.KLAutoencoder(**SMALL)
    apply = jax.jit(net.apply, static_argnames="method")
    params = jax.jit(net.init)(jax.random.key(1), IMAGES)
    mean, log_variance = apply(params, IMAGES, method="encode")
    assert mean.shape == log_variance.shape == (2, 4, 6, 3)
    image, same, _ = apply(params, IMAGES)
    np.testing.assert_allclose(apply(params, mean, method="decode"), image, atol=1e-5)
    noise = jnp.ones_like(mean)
    moved = apply(params, mean + jnp.exp(0.5 * log_variance), method="decode")
    np.testing.assert_allclose(apply(params, IMAGES, noise)[0], moved, atol=1e-5)
    assert image.shape == IMAGES.shape and jnp.abs(moved - image).max() > 1e-3
    bias = params["params"]["encoder"]["Conv_3"]["bias"]
    params["params"]["encoder"]["Conv_3"]["bias"] = jnp.full_like(bias, 100.0)
    assert np.all(apply(params, IMAGES, method="encode")[1] == 20)
    patched = jax.eval_shape(lambda: models.KLAutoencoder(**SMALL, patch=2).init_with_output(jax.random.key(1), IMAGES))
    assert patched[0][0].shape == IMAGES.shape and patched[0][1].shape == (2, 2, 3, 3)


@pytest.mark.parametrize(
    "options, shape, words",
    [({}, (1, 7, 8, 1), "H and W divisible by 2"), ({}, (1, 8, 8, 3), r"expects \[B, H, W, 1\]"), ({"patch": 0}, (1, 8, 8, 1), "patch = 0")],
)
def test_impossible_images_are_refused(options, shape, words):
    with pytest.raises(ValueError, match=words):
        models.KLAutoencoder(**SMALL | options).init(jax.random.key(0), jnp.zeros(shape))
