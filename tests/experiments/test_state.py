"""What a step does beside the gradient: rates, averages, weights of a forced size, learned weights of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from experiments import data, network, objectives, state


def rates(**optim) -> np.ndarray:
    """The size of each of 12 updates by Adam, which is the rate where gradients are all 1."""
    config = default.get_config()
    config.optim.update({"clip": 0.0, "learning_rate": 0.1, **optim})
    optimizer = state.optimizer(config)
    params, sizes = jnp.zeros(3), []
    opt_state = optimizer.init(params)
    for _ in range(12):
        updates, opt_state = optimizer.update(jnp.ones(3), opt_state, params)
        sizes.append(-float(updates[0]))
    return np.array(sizes)


def test_inverse_square_root():
    """EDM2's rate, rising to step 2 and falling from step 4 on (the first of these has step 0)."""
    step = np.arange(12)
    expected = 0.1 * np.minimum(step / 2, 1) / np.sqrt(np.maximum(step / 4, 1))
    np.testing.assert_allclose(rates(schedule="inverse_sqrt", warmup=2, decay=4), expected, rtol=1e-4)
    np.testing.assert_allclose(rates(schedule="inverse_sqrt", warmup=0, decay=10**9), 0.1, rtol=1e-4)
    with pytest.raises(ValueError, match="expected the steps after which the rate falls"):
        rates(schedule="inverse_sqrt")


def test_no_clip():
    """A clip of 0 is none, as a huge one is: Adam's epsilon shows the size of the gradient, which a clip of 1 shortens from its norm of sqrt(3)."""
    update = {clip: rates(clip=clip, epsilon=1.0, warmup=0) for clip in (0.0, 1e9, 1.0)}
    np.testing.assert_array_equal(update[0.0], update[1e9])
    np.testing.assert_allclose(update[0.0], 0.1 / 2, rtol=1e-4)
    np.testing.assert_allclose(update[1.0], 0.1 / (1 + np.sqrt(3)), rtol=1e-4)


@pytest.mark.parametrize("std, gamma", [(0.05, 16.97), (0.1, 6.94)])
def test_power_function_average(std, gamma):
    """Of n steps what each counts for, k^gamma (2312.02696, appendix C), has that standard deviation; EDM2's own exponents. By plain averages of a
    constant decay the bump does not grow with training."""
    optim = default.get_config().optim
    optim.ema_std = std

    def width(n):
        shares = np.asarray(jax.vmap(lambda k: state.ema_share(optim, k))(jnp.arange(n)), np.float64)
        kept = np.append(np.cumprod(1 - shares[:0:-1])[::-1], 1.0)
        weights, at = shares * kept, (np.arange(n) + 1) / n
        mean = np.sum(weights * at)
        return weights, np.sqrt(np.sum(weights * (at - mean) ** 2))

    weights, found = width(2000)
    assert weights.sum() == pytest.approx(1, abs=1e-5) and found == pytest.approx(std, rel=5e-3)
    k = np.array([500, 2000])
    assert np.diff(np.log(weights[k - 1])) / np.diff(np.log(k)) == pytest.approx(gamma, rel=1e-2)
    assert width(500)[1] == pytest.approx(found, rel=2e-2)
    optim.update(ema_std=0.0, ema=0.9)
    assert width(500)[1] > 3 * width(2000)[1]


def edm2(**objective):
    config = default.get_config()
    config.sde.name = "EDM"
    config.model.update(name="EDM2", channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8)
    config.objective.update(kind="edm", clock="edm", **objective)
    config.optim.update(learning_rate=1.0, warmup=0)
    dataset = data.load(config.data)
    return config, dataset, network.from_config(config, dataset.num_classes)


@pytest.mark.slow
def test_weights_of_edm2_keep_their_size():
    """After three steps at a high rate the mean square of what leads to a channel is 1; without it, it has grown."""
    config, dataset, net = edm2()
    new = jax.jit(lambda: net.init(jax.random.key(0), dataset.shape))()
    sizes = lambda params: [jnp.mean(a**2, range(a.ndim - 1)) for path, a in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]

    def after(name):
        config.model.name = name  # the optimizer's alone
        optimizer, params = state.optimizer(config), new
        opt_state = optimizer.init(params)

        @jax.jit
        def step(params, opt_state, key):
            grads = jax.tree.map(lambda a: jax.random.normal(key, a.shape), params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return jax.tree.map(jnp.add, params, updates), opt_state

        for i in range(3):
            params, opt_state = step(params, opt_state, jax.random.key(i))
        return params

    forced, free = after("EDM2"), after("UNet")
    for size in sizes(forced):
        np.testing.assert_allclose(size, 1, rtol=1e-3)
    assert all(size.mean() > before.mean() + 0.5 for size, before in zip(sizes(free), sizes(new)))
    assert jax.tree.all(jax.tree.map(lambda a: np.all(np.isfinite(a)), forced))


@pytest.mark.slow
def test_adaptive_weights_of_times():
    """exp(w) loss - w: at the start the loss itself; least where w is -log of the loss, where its gradient in w is 0."""
    config, dataset, net = edm2(adaptive=True)
    params = jax.jit(lambda: net.init(jax.random.key(0), dataset.shape))()
    batch = {"value": dataset.values["train"][:64], "label": np.zeros(64, int), "position": np.arange(64)}
    each = jax.jit(lambda params: objectives.loss(net, params, dataset, config.objective, jax.random.key(1), batch))
    plain = edm2()[2]
    bare = objectives.loss(plain, {k: v for k, v in params.items() if k != "uncertainty"}, dataset, config.objective, jax.random.key(1), batch)
    np.testing.assert_allclose(each(params), bare, rtol=1e-5)
    kernel = params["uncertainty"]["Dense_0"]["kernel"]
    moved = params | {"uncertainty": {"Dense_0": {"kernel": kernel + 0.1 * jax.random.normal(jax.random.key(2), kernel.shape)}}}
    t = objectives.landing(net.sde, config.objective.time, objectives.uniforms(jax.random.key(1), batch["position"]))
    w = net.weight(moved, t)
    assert jnp.std(w) > 0.1
    np.testing.assert_allclose(each(moved), jnp.exp(w) * bare - w, rtol=1e-4)
    for name, value in (("loss", "consistency"), ("loss", "autoencoder"), ("time", {"name": "importance"})):
        changed = config.copy_and_resolve_references()
        changed.objective.update({name: value})
        with pytest.raises(ValueError, match="adaptive = True"):
            network.from_config(changed, 10)
