"""Operators against their matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import operators

MASK = np.random.default_rng(0).random((4, 6, 3)) < 0.4
ALL = {
    "inpainting": operators.inpainting(MASK),
    "super_resolution": operators.super_resolution((4, 6, 3), 2),
    "blur": operators.blur((4, 6, 3), 0.7),
    "colorization": operators.colorization((4, 6, 3)),
    "wide": operators.matrix(np.random.default_rng(1).normal(size=(3, 7))),
    "tall, of rank 2": operators.matrix(np.random.default_rng(2).normal(size=(7, 2)) @ np.random.default_rng(3).normal(size=(2, 4))),
}


@pytest.mark.parametrize("name", ALL)
def test_operators_are_their_matrices(name, x64):
    """forward, transpose, (A A^T + c)^+, the pseudo-inverse and its projection, against NumPy's of the whole matrix; c for each example."""
    operator = ALL[name]
    dim = int(np.prod(operator.shape))
    y = operator.forward(jnp.eye(dim).reshape(dim, *operator.shape))
    a = np.asarray(y).reshape(dim, -1).T
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, *operator.shape)), jnp.asarray(rng.normal(size=(2, *y.shape[1:])))
    flat = lambda z: np.asarray(z).reshape(2, -1)
    np.testing.assert_allclose(flat(operator.forward(jnp.asarray(x))), flat(x) @ a.T, atol=1e-12)
    np.testing.assert_allclose(flat(operator.transpose(v)), flat(v) @ a, atol=1e-12)
    inverse = np.linalg.pinv(a, rcond=1e-3)
    np.testing.assert_allclose(flat(operator.pseudo_inverse(v)), flat(v) @ inverse.T, atol=1e-9)
    np.testing.assert_allclose(flat(operator.project(jnp.asarray(x))), flat(x) @ (inverse @ a).T, atol=1e-9)
    c = np.array([0.1, 2.0])
    measured = a @ inverse  # (A A^T + c)^+ is needed, and given, of what A measures
    wanted = np.stack([measured @ np.linalg.solve(a @ a.T + c[i] * np.eye(len(a)), flat(v)[i]) for i in range(2)])
    np.testing.assert_allclose(flat(operator.solve(v, c)), wanted, atol=1e-6)


def test_what_images_become():
    x = jax.random.uniform(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_allclose(ALL["inpainting"].forward(x), x[:, MASK], rtol=1e-6)
    np.testing.assert_allclose(ALL["super_resolution"].forward(x)[0, 1, 2, 0], x[0, 2:4, 4:6, 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(ALL["colorization"].forward(x)[..., 0], x.mean(-1), rtol=1e-6)
    np.testing.assert_allclose(ALL["blur"].forward(jnp.ones((1, 4, 6, 3))), 1.0, rtol=1e-6)


def test_mistakes_are_refused():
    for words, fn in (
        ("at least one True", lambda: operators.inpainting(np.zeros((2, 2), bool))),
        ("expected bool", lambda: operators.inpainting(np.ones((2, 2)))),
        ("factor = 3", lambda: operators.super_resolution((4, 6, 1), 3)),
        ("std = 0", lambda: operators.blur((4, 6, 1), 0.0)),
        ("with colour", lambda: operators.colorization((4, 6, 1))),
        ("a matrix of shape", lambda: operators.matrix(np.zeros(3))),
        ("expected \\[B,", lambda: ALL["wide"].forward(jnp.zeros((1, 6)))),
    ):
        with pytest.raises(ValueError, match=words):
            fn()
