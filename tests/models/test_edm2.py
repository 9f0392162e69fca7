"""The magnitude-preserving network of EDM2, by the sizes of what passes through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import EDM2
from models.edm2 import join, mix, normalized, silu

SMALL = dict(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, num_classes=3)
T, LABEL = jnp.linspace(-1.0, 1.0, 64), jnp.arange(64) % 3
X = jax.random.normal(jax.random.key(0), (64, 8, 8, 3))


def made(x=X, **options):
    net = EDM2(**SMALL | options)
    return net, jax.jit(net.init)(jax.random.key(1), x[:1], T[:1], LABEL[:1])


def with_gains(params, value: float):
    """Of the gains, which are 0 at the start."""
    return jax.tree_util.tree_map_with_path(lambda path, a: a + value if path[-1].key == "gain" else a, params)


def test_functions_preserve_magnitudes():
    """Of 2^20 independent draws, whose mean square has a standard error of 0.0014; the plain functions do not."""
    a, b = jax.random.normal(jax.random.key(2), (2, 1024, 1024))
    size = lambda x: float(jnp.mean(x**2))
    for found in (silu(a), mix(a, b), mix(a, b, 0.3), join(a[None, :, :, None], jnp.broadcast_to(b[None, :, :, None], (1, 1024, 1024, 3)))):
        assert size(found) == pytest.approx(1, abs=0.008)
    assert size(jax.nn.silu(a)) < 0.4 and size(a + b) > 1.9
    joined = join(a[..., :1], b[..., :7])  # both halves count alike
    assert size(joined[..., :1]) == pytest.approx(7 * size(joined[..., 1:]), rel=0.2)


@pytest.mark.slow
def test_network_preserves_magnitudes():
    """At the start every block passes on what has a mean square near 1 (less at the edges, where zeros are beside the image), and with a gain of 1 so
    does the output; in half precision where that is asked for."""
    x = jax.random.normal(jax.random.key(4), (8, 32, 32, 3))
    net, params = made(x, attention=(16,))
    params = {"params": params["params"] | {"gain": jnp.ones(())}}
    chosen = lambda module, method: type(module).__name__ == "Block" and method == "__call__"
    apply = lambda net: net.apply(params, x, T[:8], LABEL[:8], capture_intermediates=chosen, mutable=["intermediates"])
    y, found = jax.jit(lambda: apply(net))()
    assert {a.dtype.name for a in jax.tree.leaves(jax.eval_shape(lambda: apply(net.copy(dtype="bfloat16")))[1])} == {"bfloat16"}
    sizes = [float(jnp.mean(a**2)) for a in jax.tree.leaves(found)]
    assert len(sizes) == 2 + 1 + 2 + 4 + 1  # encoder, down, in, decoder, up
    assert np.all(np.abs(np.array(sizes) - 1) < 0.3), sizes
    assert float(jnp.mean(y**2)) == pytest.approx(1, abs=0.3)


@pytest.mark.slow
def test_weights_count_by_their_direction():
    """Ten times as large, in each output channel by another factor, they give the same, and a gradient that stands on them."""
    net, params = made()
    params = with_gains(params, 1.0)
    larger = lambda path, a: a * jnp.linspace(2.0, 10.0, a.shape[-1]) if path[-1].key == "kernel" else a
    call = jax.jit(lambda p: net.apply(p, X[:4], T[:4], LABEL[:4]))
    y = call(params)
    np.testing.assert_allclose(call(jax.tree_util.tree_map_with_path(larger, params)), y, atol=1e-2)
    gained = lambda path, a: a * 2 if path[-1].key == "gain" else a
    assert jnp.abs(call(jax.tree_util.tree_map_with_path(gained, params)) - y).max() > 0.5

    grads = jax.grad(lambda p: jnp.mean(call(p) ** 3))(params)
    for path, grad in jax.tree_util.tree_flatten_with_path(grads)[0]:
        if path[-1].key == "kernel":
            weight = params
            for key in path:
                weight = weight[key.key]
            along = jnp.sum(grad * weight, range(weight.ndim - 1)) / jnp.sqrt(jnp.sum(grad**2) * jnp.sum(weight**2) + 1e-20)
            assert jnp.abs(along).max() < 1e-3, path


@pytest.mark.slow
@pytest.mark.parametrize("modulate, embedding", [("gain", "fourier"), ("double", "positional")])
def test_derivative_in_time(modulate, embedding):
    """By forward differentiation, as continuous-time consistency takes it, and by differences."""
    net, params = made(modulate=modulate, embedding=embedding)
    params = with_gains(params, 0.5)
    f = jax.jit(lambda t: net.apply(params, X[:4], t, LABEL[:4]))
    t, h = jnp.array([0.3, 0.5, 0.9, 1.3]), 1e-2
    tangent = jax.jvp(f, (t,), (jnp.ones(4),))[1]
    np.testing.assert_allclose(tangent, (f(t + h) - f(t - h)) / (2 * h), atol=0.02 * float(jnp.abs(tangent).max()))
    assert jnp.abs(tangent).max() > 1e-2


@pytest.mark.slow
def test_dropout_below_a_height():
    """Of 4 it leaves the blocks of 8 pixels alone, which with one level are all."""
    for options, drops in ((dict(multipliers=(1,), attention=()), False), (dict(), True)):
        net, params = made(dropout=0.5, dropout_height=4, **options)
        params = with_gains(params, 1.0)
        plain = net.apply(params, X[:4], T[:4], LABEL[:4])
        dropped = net.apply(params, X[:4], T[:4], LABEL[:4], jnp.arange(4), rngs={"dropout": jax.random.key(5)})
        assert (jnp.abs(plain - dropped).max() > 1e-2) == drops


@pytest.mark.slow
def test_no_label_is_zeros():
    """num_classes stands for it, and so does None."""
    net, params = made()
    params = with_gains(params, 1.0)
    none = net.apply(params, X[:4], T[:4], jnp.full(4, 3))
    np.testing.assert_array_equal(none, net.apply(params, X[:4], T[:4]))
    assert jnp.abs(none - net.apply(params, X[:4], T[:4], LABEL[:4])).max() > 1e-2


def test_forced_weights_have_unit_size():
    weight = 3 * jax.random.normal(jax.random.key(3), (3, 3, 5, 7))
    np.testing.assert_allclose(jnp.mean(normalized(weight) ** 2, (0, 1, 2)), 1, rtol=1e-3)


@pytest.mark.parametrize("size, millions", [(64, None), (128, 125), (192, 280), (256, 498), (320, 777), (384, 1119), (448, 1523)])
def test_published_sizes(size, millions):
    """The paper's table 2, of latents of ImageNet 512."""
    params = jax.eval_shape(EDM2(channels=size, num_classes=1000).init, jax.random.key(0), jnp.zeros((1, 64, 64, 4)), jnp.zeros(1))
    count = sum(a.size for a in jax.tree.leaves(params)) / 1e6
    assert millions is None or count == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(multipliers=()), "expected at least one of each"),
        (dict(multipliers=(1, 1, 1, 1, 1), attention=()), "divisible by 16"),
        (dict(attention=(5,)), "has the resolutions 8, 4"),
        (dict(modulate="shift"), "expected gain or double"),
        (dict(embedding="smooth"), "expected fourier or positional"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(ValueError, match=words):
        EDM2(**SMALL | options).init(jax.random.key(0), X[:1], T[:1])
