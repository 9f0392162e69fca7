"""The convolution of CPUs is the one of JAX: its values, its derivatives of every kind, and its batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.convolution import convolve

CASES = [((1, 1), "SAME"), ((2, 2), "SAME"), ((2, 2), "VALID"), ((1, 1), ((1, 2), (0, 1))), ((2, 1), ((1, 1), (0, 3)))]


@pytest.mark.parametrize("strides, padding", [pytest.param(*case, marks=[pytest.mark.slow] * (1 < i < 4)) for i, case in enumerate(CASES)])
def test_agrees_with_jax(strides, padding, x64):
    """On sides that the strides do not divide: value, both gradients, forward derivative, derivative of the gradients, vmap over x and over both."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 9, 8, 5))
    kernel = jax.random.normal(jax.random.key(1), (2, 3, 3, 5, 7))
    theirs = lambda x, k: lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    ours = lambda x, k: convolve(x, k, strides, padding)

    def everything(conv):
        loss = lambda x, k: jnp.sum(jnp.sin(conv(x, k)))
        first = (x[0], kernel[0])
        grads = jax.grad(loss, (0, 1))
        return [
            conv(*first),
            grads(*first),
            jax.jvp(conv, first, (x[1], kernel[1]))[1],
            jax.jvp(grads, first, (x[1], kernel[1]))[1],
            jax.grad(lambda *a: jnp.sum(grads(*a)[0] ** 2), (0, 1))(*first),
            jax.vmap(conv, (0, None))(x, kernel[0]),
            jax.vmap(conv)(x, kernel),
            jax.vmap(grads, (0, None))(x, kernel[0]),
        ]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), everything(ours), everything(theirs))


def test_gradients_in_a_loop_are_plain():
    """No gradient convolution inside a scan has permuted dimensions, which a CPU computes twenty times slower (jax#12868)."""
    x, kernel = jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 3))

    def layouts(conv):
        step = lambda k, _: (k - jax.grad(lambda k: jnp.sum(conv(conv(x, k), k) ** 2))(k), None)
        text = jax.jit(lambda k: lax.scan(step, k, None, length=3)[0]).lower(kernel).compile().as_text()
        return [line.split("dim_labels=")[1].split(",")[0].split("}")[0] for line in text.splitlines() if "dim_labels=" in line]

    theirs = layouts(lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    ours = layouts(lambda x, k: convolve(x, k, (1, 1), "SAME"))
    assert set(ours) == {"b01f_01io->b01f"} and set(theirs) != set(ours), (ours, theirs)
