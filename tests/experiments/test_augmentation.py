"""EDM's augmentation: what a transformation says is what is done, how often each is drawn, and what the network is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, edm
from experiments import data, network, objectives
from experiments.augmentation import SYM6, Transformation, augment, draw, labels, warp

SIDE = 32
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float32)
WARP = jax.jit(warp)


def blob(columns=COLUMNS, rows=ROWS):
    """A smooth image without symmetries, as a function of places."""
    first, second = (np.exp(-((columns - x) ** 2) / w - (rows - y) ** 2 / h) for x, y, w, h in ((20, 10, 30, 50), (11, 22, 25, 15)))
    return np.stack([first - 0.5 * second, second], -1).astype(np.float32)


def made(**what):
    return Transformation(**{name: np.float32(what.get(name, 0)) for name in Transformation._fields})


def around(x):
    """Of the centre."""
    return x - (SIDE - 1) / 2


def test_the_filter_is_orthonormal():
    """The shifts by two of sym6, so that a map that almost does nothing gives the image back to rounding."""
    h = np.array(SYM6)
    np.testing.assert_allclose([h[2 * k :] @ h[: 12 - 2 * k] for k in range(6)], [1, 0, 0, 0, 0, 0], atol=1e-11)
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE, 1)).astype(np.float32)
    np.testing.assert_allclose(WARP(noise, made(angle=1e-8)), noise, atol=1e-5)
    np.testing.assert_array_equal(WARP(noise, made()), noise)


def test_flips_and_whole_shifts_are_exact():
    """Of any image: mirrored, or moved by whole pixels (an eighth of the image for each standard deviation) with its reflection following."""
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE, 2)).astype(np.float32)
    np.testing.assert_array_equal(WARP(noise, made(x_flip=1)), noise[:, ::-1])
    np.testing.assert_array_equal(WARP(noise, made(y_flip=1)), noise[::-1])
    reflected = np.pad(noise, ((8, 8), (8, 8), (0, 0)), "reflect")
    np.testing.assert_allclose(WARP(noise, made(right=1, down=-2)), reflected[16:, 4:-12], atol=1e-5)


@pytest.mark.parametrize(
    "what, source",
    [
        ({"angle": np.pi / 2}, lambda x, y: (-y, x)),  # counter-clockwise: what was right is on top
        ({"angle": np.pi}, lambda x, y: (-x, -y)),
        ({"scale": 5.0}, lambda x, y: (x / 2, y / 2)),
        ({"stretch": 2.5}, lambda x, y: (x / 2**0.5, y * 2**0.5)),
        ({"stretch": 2.5, "direction": np.pi / 2}, lambda x, y: (x * 2**0.5, y / 2**0.5)),
        ({"stretch": -2.5}, lambda x, y: (x * 2**0.5, y / 2**0.5)),
        ({"angle": np.pi / 2, "right": 1.0}, lambda x, y: (-y, x - 4)),
    ],
)
def test_a_smooth_image_is_sampled_where_the_transformation_says(what, source):
    """Within the image, against the function that it is of, to 2% (bilinear interpolation, and the filter's 0.05 pixels); another sign of the angle
    or the direction would be off by the size of the image's values."""
    x, y = source(around(COLUMNS), around(ROWS))
    expected, found = blob(*(a + (SIDE - 1) / 2 for a in (x, y))), WARP(blob(), made(**what))
    inside = (np.abs(x) < SIDE / 2 - 2) & (np.abs(y) < SIDE / 2 - 2)
    assert inside.sum() > 200 and np.abs(expected[inside]).max() > 0.5
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.025)


def test_how_often_and_how_much():
    """20,000 draws at p = 0.3: every frequency and standard deviation within 4 standard errors; each label tells of its own."""
    n, p = 20_000, 0.3
    drawn = jax.jit(jax.vmap(lambda key: draw(key, p)))(jax.random.split(jax.random.key(0), n))
    chances = {"x_flip": 0.5, "y_flip": p / 2, "scale": p, "angle": p, "stretch": p, "direction": 0.5, "right": p, "down": p}
    for name, chance in chances.items():
        value = np.asarray(getattr(drawn, name))
        assert abs((value != 0).mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / n), name
        if name in ("scale", "stretch", "right", "down"):
            some = value[value != 0]
            assert abs(some.std() - 1) < 4 / np.sqrt(2 * len(some)), name
    np.testing.assert_array_equal(drawn.right != 0, drawn.down != 0)
    told = np.asarray(jax.vmap(labels)(drawn))
    assert told.shape == (n, 9)
    np.testing.assert_allclose(np.arctan2(told[:, 4], told[:, 3] + 1), drawn.angle, atol=1e-5)
    np.testing.assert_allclose(np.hypot(told[:, 5], told[:, 6]), np.abs(drawn.stretch), atol=1e-5)
    for column, name in ((0, "x_flip"), (1, "y_flip"), (2, "scale"), (7, "right"), (8, "down")):
        np.testing.assert_array_equal(told[:, column], getattr(drawn, name))
    assert not labels(made()).any()


def test_an_image_is_transformed_by_its_own_key():
    x, keys = jnp.asarray(np.stack([blob()] * 4)), jax.random.split(jax.random.key(1), 4)
    call = jax.jit(lambda keys, x: augment(keys, x, 1.0))
    y, told = call(keys, x)
    for a, b in zip(call(keys[::-1], x[::-1]), (y, told)):
        np.testing.assert_allclose(a[::-1], b, atol=1e-5)
    assert all(np.abs(y[i] - y[0]).max() > 0.1 for i in range(1, 4))
    same, none = augment(keys, x, 0.0)
    np.testing.assert_array_equal(same, x)
    assert none.shape == (4, 9) and not none.any()


def small_config(**more):
    config = default.get_config()
    config.model.update(name="UNet", channels=4, blocks=1, multipliers=(1,), **more)
    return config


@pytest.mark.slow
def test_a_network_is_told_in_training_only():
    """The loss of an augmented batch depends on the labels' weights; without labels, as sampling is, they do nothing; a network that cannot be told,
    and the bound of the data, are refused."""
    config = small_config(augment_dim=9)
    config.data.augment = 1.0
    digits = data.load(config.data)
    net = network.from_config(config, 10)
    params = jax.tree.map(lambda p: p + 0.1, jax.jit(lambda: net.init(jax.random.key(0), digits.shape))())
    told = params["Conditioning_0"]["augmented"]["kernel"]
    assert told.shape == (9, 16) and "bias" not in params["Conditioning_0"]["augmented"]
    batch = next(data.batches(digits, 4, 0))
    other = jax.tree.map(jnp.copy, params)
    other["Conditioning_0"]["augmented"]["kernel"] = told + 1
    loss = jax.jit(lambda params: objectives.loss(net, params, digits, config.objective, jax.random.key(0), batch))
    assert np.all(loss(params) != loss(other))
    x, t = jnp.ones((2, *digits.shape)), jnp.full(2, 0.3)
    call = jax.jit(lambda params: net(params, x, t))
    np.testing.assert_array_equal(call(params), call(other))
    without = jax.eval_shape(lambda: network.from_config(small_config(), 10).init(jax.random.key(0), digits.shape))
    assert "augmented" not in without["Conditioning_0"]

    config.model.augment_dim = None
    with pytest.raises(ValueError, match="expected a UNet with model.augment_dim = 9"):
        network.from_config(config, 10)
    config.data.augment = 1.5
    with pytest.raises(ValueError, match="config.data.augment = 1.5: expected a probability"):
        data.load(config.data)
    config.data.update(name="8gaussians", augment=0.1)
    with pytest.raises(ValueError, match="0 but for images"):
        data.load(config.data)


@pytest.mark.slow
def test_parameters_of_edm():
    """55,733,891, as EDM's unconditional DDPM++ for CIFAR-10 has them."""
    net = network.from_config(edm.get_config("cifar10_uncond"), 10)
    assert sum(a.size for a in jax.tree.leaves(jax.eval_shape(lambda: net.init(jax.random.key(0), (32, 32, 3))))) == 55_733_891
