import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.dequantizer import Dequantizer
from models.dropout import Dropout
from models.embeddings import fourier_features, sinusoidal
from models.unet import depth_to_space, space_to_depth

IMAGE = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
SMALL = {
    "DiT": dict(width=16, depth=2, num_heads=2, dropout=0.5),
    "MMDiT": dict(width=16, depth=2, num_heads=2, dropout=0.5),
    "MLP": dict(width=16, depth=2, frequencies=(1.0,)),
    "ResidualMLP": dict(width=16, depth=2, dropout=0.5),
    "UNet": dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.5),
    "EDM2": dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, dropout=0.5),
}


def lively(params):
    """Parameters with the zero initialisations replaced, so that every part has an effect."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(tree, [p + 0.2 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys)])


@pytest.mark.slow
def test_double_normalization():
    """With modulate "double" the size of the matrices that modulate blocks does not matter; with scale_shift it does."""

    def moved(modulate):
        net = models.UNet(**SMALL["UNet"], modulate=modulate)
        params = lively(jax.jit(net.init)(jax.random.key(1), IMAGE, jnp.ones(4)))
        larger = jax.tree_util.tree_map_with_path(lambda path, a: 3 * a if "ResBlock" in str(path[1]) and "Dense" in str(path[2]) else a, params)
        return jnp.abs(net.apply(larger, IMAGE, jnp.ones(4)) - net.apply(params, IMAGE, jnp.ones(4))).max()

    assert moved("double") < 1e-4 < 1e-2 < moved("scale_shift")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("EDM2", "MMDiT"))) for n in models.NETWORKS])
def test_network(name):
    """Zero output at the start; depends on x, t and label; an example does not depend on its batch-mates."""
    net = models.NETWORKS[name](**SMALL.get(name, {}), num_classes=3)
    t, label = jnp.linspace(0.1, 0.9, 4), jnp.array([0, 1, 2, 0])
    params = jax.jit(net.init)(jax.random.key(1), IMAGE, t, label)
    call = jax.jit(net.apply)
    assert not np.any(call(params, IMAGE, t, label))
    params = lively(params)
    apply = lambda x, t, label: call(params, x, t, label)
    y = apply(IMAGE, t, label)
    assert y.shape == IMAGE.shape and np.all(np.isfinite(y))
    for other in ((2 * IMAGE, t, label), (IMAGE, t + 0.05, label), (IMAGE, t, (label + 1) % 3)):
        assert np.all(jnp.abs(apply(*other) - y).max((1, 2, 3)) > 1e-4)
    np.testing.assert_allclose(apply(IMAGE[1:2], t[1:2], label[1:2]), y[1:2], atol=1e-5)


@pytest.mark.slow
def test_classifier():
    """Logits depend on x and t, and on no batch-mate."""
    net = models.NoisyClassifier(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=3, dropout=0.5)
    t = jnp.linspace(0.1, 0.9, 4)
    params = lively(jax.jit(net.init)(jax.random.key(1), IMAGE, t))
    call = jax.jit(net.apply)
    y = call(params, IMAGE, t)
    assert y.shape == (4, 3)
    for other in ((2 * IMAGE, t), (IMAGE, t + 0.05)):
        assert np.all(jnp.abs(call(params, *other) - y).max(1) > 1e-4)
    np.testing.assert_allclose(call(params, IMAGE[1:2], t[1:2]), y[1:2], atol=1e-5)
    with pytest.raises(ValueError, match="divisible by 2"):
        net.init(jax.random.key(0), IMAGE[:, :7], t)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1), *(pytest.param(s, marks=pytest.mark.slow) for s in ((2, 5), (2, 4, 6, 1)))])
def test_dequantizer_is_a_density_on_the_unit_cube(shape):
    """log q(u | x) is minus the log-determinant of the Jacobian of u in uniform noise; with new parameters q is uniform."""
    net, key = Dequantizer(width=8, layers=3), jax.random.key(0)
    x, e = jax.random.normal(key, shape), jax.random.uniform(key, shape, minval=0.01, maxval=0.99)
    params = jax.jit(net.init)(key, x, e)
    u, log_q = net.apply(params, x, e)
    np.testing.assert_allclose(u, e, atol=1e-5)
    np.testing.assert_allclose(log_q, 0, atol=1e-4)
    params = lively(params)
    u, log_q = net.apply(params, x, e)
    assert np.all((u > 0) & (u < 1)) and np.all(jnp.abs(u - e).reshape(2, -1).max(1) > 1e-3)
    one = lambda x, e: net.apply(params, x[None], e.reshape(1, *shape[1:]))[0].ravel()
    for i in range(2):
        jacobian = jax.jacfwd(one, 1)(x[i], e[i].ravel())
        np.testing.assert_allclose(log_q[i], -np.linalg.slogdet(jacobian)[1], rtol=1e-3, atol=1e-3)


SONG = dict(channels=128, multipliers=(1, 2, 2, 2), attention=(16,), embedding="positional", modulate="shift", head_channels=0)
DDPMPP = SONG | dict(blocks=4, resample="block_projected", rescale=True, decoder_attention="last")
NCSNPP = DDPMPP | dict(embedding="fourier", kernel=(1.0, 3.0, 3.0, 1.0), grow_input="residual")
ADM = dict(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), embedding="positional", resample="block", num_classes=1000)
DIT = dict(num_classes=1000)
PUBLISHED = {  # network, size of its images, millions of parameters
    "DDPM": (models.UNet(**SONG, blocks=2), (32, 32, 3), 35.746307),  # the converted checkpoint's
    "DDPM++": (models.UNet(**DDPMPP), (32, 32, 3), 61.8),
    "NCSN++": (models.UNet(**NCSNPP), (32, 32, 3), 62.8),
    "NCSN++ deep": (models.UNet(**NCSNPP | {"blocks": 8}), (32, 32, 3), 107.6),
    "DDPM++ of EDM": (models.UNet(**DDPMPP | {"multipliers": (2, 2, 2)}), (32, 32, 3), 55.7),
    "ADM": (models.UNet(**ADM), (64, 64, 3), 295.9),
    "DiT-S/2": (models.DiT(width=384, depth=12, num_heads=6, **DIT), (32, 32, 4), 32.96),
    "DiT-B/2": (models.DiT(width=768, depth=12, num_heads=12, **DIT), (32, 32, 4), 130.5),
    "DiT-L/2": (models.DiT(width=1024, depth=24, num_heads=16, **DIT), (32, 32, 4), 458.1),
    "DiT-XL/2": (models.DiT(width=1152, depth=28, num_heads=16, **DIT), (32, 32, 4), 675.1),
    "SD3 medium": (models.MMDiT(width=1536, depth=24, num_heads=24, normalise=False), (128, 128, 16), 2028.3),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in ("NCSN++ deep", "DiT-L/2", "ADM") else n for n in PUBLISHED])
def test_published_sizes(name):
    """Parameter counts, to a tenth of a percent; those of DiT are with fixed positions, and with variances that are not predicted here."""
    net, shape, millions = PUBLISHED[name]
    label = (jnp.zeros((1, 333, 4096)), jnp.zeros((1, 2048))) if isinstance(net, models.MMDiT) else None
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), label)
    more = 256 * net.width + 16 * (net.width + 1) if isinstance(net, models.DiT) else 0
    assert sum(a.size for a in jax.tree.leaves(params)) + more == pytest.approx(1e6 * millions, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DiT", "UNet", "EDM2"])
def test_remat_and_bfloat16(name):
    """Computing again changes no gradient; half precision keeps the parameters in single, and the result near."""
    make = lambda **more: getattr(models, name)(**SMALL[name] | {"dropout": 0.0} | more)
    t = jnp.linspace(0.1, 0.9, 4)
    params = lively(jax.jit(make().init)(jax.random.key(1), IMAGE, t))
    value = lambda net: jax.jit(jax.value_and_grad(lambda p: jnp.mean(net.apply(p, IMAGE, t) ** 2)))(params)
    plain, again = value(make()), value(make(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, again)
    half = make(dtype="bfloat16")
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(1), IMAGE, t)))
    y, expected = half.apply(params, IMAGE, t), make().apply(params, IMAGE, t)
    assert y.dtype == jnp.float32
    assert 0 < jnp.sqrt(jnp.mean((y - expected) ** 2) / jnp.mean(expected**2)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("grow", ["residual", "skip"])
def test_growing_unets(grow):
    """Every parameter of a network that grows its input and output has an effect; an unknown choice is refused."""
    small = SMALL["UNet"] | {"dropout": 0.0, "attention": ()}
    net = models.UNet(**small, grow_input=grow, grow_output=grow, resample="block", kernel=(1.0, 3.0, 3.0, 1.0))
    params = lively(jax.jit(net.init)(jax.random.key(1), IMAGE, jnp.ones(4)))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, IMAGE, jnp.ones(4)) ** 2)))(params)
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    with pytest.raises(ValueError, match="grow_input 'fast': expected none or residual or skip"):
        models.UNet(**SMALL["UNet"], grow_input="fast").init(jax.random.key(0), IMAGE, jnp.ones(4))


@pytest.mark.slow
def test_embeddings_condition_a_transformer():
    """Tokens and a pooled vector of any encoder; an order of tokens does not matter, the tokens do."""
    net = models.MMDiT(**SMALL["MMDiT"] | {"dropout": 0.0})
    tokens, pooled = jax.random.normal(jax.random.key(2), (4, 3, 5)), jax.random.normal(jax.random.key(3), (4, 7))
    params = lively(jax.jit(net.init)(jax.random.key(1), IMAGE, jnp.ones(4), (tokens, pooled)))
    call = jax.jit(lambda *label: net.apply(params, IMAGE, jnp.ones(4), label))
    y = call(tokens, pooled)
    np.testing.assert_allclose(call(tokens[:, ::-1], pooled), y, atol=1e-4)
    assert jnp.abs(call(2 * tokens, pooled) - y).max() > 1e-3 and jnp.abs(call(tokens, 2 * pooled) - y).max() > 1e-3


@pytest.mark.slow
def test_patches_of_a_unet():
    """Space to depth and back is the identity, and a U-Net on patches keeps its shape."""
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, 2), 2), x)
    np.testing.assert_array_equal(space_to_depth(x, 2)[0, 0, 0], x[0, :2, :2].ravel())
    net = models.UNet(**SMALL["UNet"] | {"patch": 2, "attention": (2,)})
    params = lively(jax.jit(net.init)(jax.random.key(1), IMAGE, jnp.ones(4)))
    assert jax.jit(net.apply)(params, IMAGE, jnp.ones(4)).shape == IMAGE.shape


TOLD = {
    "second_time": ("s", ("gap", "told"), lambda t: t, lambda t: t - 0.05),
    "told_omega": ("omega", ("omega", "told"), jnp.ones_like, lambda t: 1 + t),
}


CASES = [(name, option) for name, cls in models.NETWORKS.items() for option in TOLD if option in cls.__dataclass_fields__]


@pytest.mark.parametrize("name, option", [pytest.param(*c, marks=[pytest.mark.slow] * (c[0] in ("UNet", "MMDiT"))) for c in CASES])
def test_what_else_it_is_told(name, option):
    """A network of two times depends on the second, which is the first where it is not given, and one that is told its guidance on that, which is 1;
    its other parameters are those without, bit for bit, and with those of such a network, trained, it is that network at first."""
    argument, parts, default, other = TOLD[option]
    make = lambda **more: models.NETWORKS[name](**SMALL.get(name, {}) | more)
    net, t = make(**{option: True}), jnp.linspace(0.1, 0.9, 4)
    first, params = (jax.jit(n.init)(jax.random.key(1), IMAGE, t) for n in (make(), net))
    one, two = dict(jax.tree.leaves_with_path(first)), dict(jax.tree.leaves_with_path(params))
    assert set(one) < set(two) and all(any(part in jax.tree_util.keystr(path) for part in parts) for path in set(two) - set(one))
    assert all(np.array_equal(one[path], two[path]) for path in one)
    call = jax.jit(lambda params, x, t, told: net.apply(params, x, t, **{argument: told}))
    trained = lively(first)
    found = dict(jax.tree.leaves_with_path(trained))
    begun = jax.tree_util.tree_map_with_path(lambda path, a: found.get(path, a), params)
    np.testing.assert_allclose(call(begun, IMAGE, t, other(t)), jax.jit(make().apply)(trained, IMAGE, t), atol=1e-6)
    params = lively(params)
    y = call(params, IMAGE, t, None)
    np.testing.assert_allclose(call(params, IMAGE, t, default(t)), y, atol=1e-6)
    assert np.all(jnp.abs(call(params, IMAGE, t, other(t)) - y).max((1, 2, 3)) > 1e-4)


def test_no_label_is_a_label_of_its_own():
    net = models.UNet(**SMALL["UNet"], num_classes=3)
    t = jnp.full(4, 0.5)
    params = lively(jax.jit(net.init)(jax.random.key(1), IMAGE, t, jnp.zeros(4, int)))
    call = jax.jit(net.apply)
    none = call(params, IMAGE, t, None)
    np.testing.assert_allclose(none, call(params, IMAGE, t, jnp.full(4, 3)), atol=1e-5)
    assert not np.allclose(none, call(params, IMAGE, t, jnp.zeros(4, int)), atol=1e-3)


def test_dropout_belongs_to_examples():
    """The mask follows the global index, whatever the batch; the mean is kept (20,000 draws at rate 0.3: within 4 standard errors)."""
    x = jnp.ones((4, 5000))
    drop = lambda x, example: Dropout(0.3).apply({}, x, example, rngs={"dropout": jax.random.key(0)})
    y = drop(x, jnp.arange(10, 14))
    np.testing.assert_array_equal(drop(x[2:], jnp.arange(12, 14)), y[2:])
    assert not np.array_equal(y[0], y[1])
    assert abs(float(y.mean()) - 1) < 4 * np.sqrt(0.3 / 0.7 / y.size)
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, None), x)


def test_embeddings():
    e = sinusoidal(jnp.array([0.0, 0.001]), 8, scale=1000.0)
    np.testing.assert_allclose(e[0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(e[1, [0, 4]], [np.sin(1.0), np.cos(1.0)], rtol=1e-5)  # position 1 at the highest frequency
    assert fourier_features(IMAGE, (1.0, 2.0)).shape == (4, 8, 8, 5)
    np.testing.assert_allclose(fourier_features(jnp.array([[0.5]]), (1.0,)), [[0.5, 1.0, 0.0]], atol=1e-6)


def test_attention_is_softmax_attention():
    """The U-Net's attention against the formula, written out."""
    from models.unet import Attention

    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    net = Attention(head_channels=4)
    params = lively(net.init(jax.random.key(1), x))
    p = params["params"]
    h = nn.GroupNorm(2, epsilon=1e-5).apply({"params": p["GroupNorm_0"]}, x).reshape(2, 16, 8)
    q, k, v = jnp.split(h @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], 3, -1)
    heads = lambda a: a.reshape(2, 16, 2, 4).transpose(0, 2, 1, 3)
    weights = jax.nn.softmax(heads(q) @ heads(k).swapaxes(-1, -2) / 2.0, -1)
    out = (weights @ heads(v)).transpose(0, 2, 1, 3).reshape(2, 4, 4, 8)
    np.testing.assert_allclose(net.apply(params, x), x + out @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"], atol=1e-4)


def test_impossible_images_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        models.UNet(channels=8, multipliers=(1, 1, 1)).init(jax.random.key(0), jnp.ones((1, 6, 6, 1)), jnp.ones(1))
