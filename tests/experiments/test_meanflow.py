"""The loss of MeanFlow against closed forms (flows.md, check 9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import small_config

import models
from configs import toy as toy_config
from experiments import data, meanflow, network, objectives, state, toy
from samplers import few_step, jumps, sample_adaptive
from sde_lib import VE, VP, FlowMap, GaussianMixture, Linear, Trig
from sde_lib.numerics import expand


def gaussian():
    return GaussianMixture([[0.3, -0.8]], [[0.5, 0.2]])


OPTIONS = ConfigDict({"apart": 0.25, "power": 1.0, "constant": 1e-2, "omega": 1.0, "kappa": 0.0, "until": 1.0})


def test_identity(x64, mixture):
    """u of a mixture, integrated along its flow (400 Runge-Kutta steps), satisfies u = v - (t - s)(v . d_x u + d_t u) to 1e-6. Control: without d_x
    or d_t 0.1 is left."""
    den = mixture.denoiser(Linear())

    def jump(x, t, s):
        def step(x, i):
            h = (s - t) / 400
            at = t + i * h
            k = den.velocity(x, at)
            k2 = den.velocity(x + expand(h / 2, x) * k, at + h / 2)
            k3 = den.velocity(x + expand(h / 2, x) * k2, at + h / 2)
            k4 = den.velocity(x + expand(h, x) * k3, at + h)
            return x + expand(h / 6, x) * (k + 2 * k2 + 2 * k3 + k4), None

        return jax.lax.scan(step, x, jnp.arange(400.0))[0]

    t, s = jnp.linspace(0.3, 0.95, 8), jnp.linspace(0.05, 0.4, 8)[::-1] * jnp.linspace(0.3, 0.95, 8)
    x = Linear().perturb(jax.random.key(0), mixture.sample(jax.random.key(1), 8), t)[0]
    u = lambda x, t: (x - jump(x, t, s)) / (t - s)[:, None]
    v, one = den.velocity(x, t), jnp.ones_like(t)
    derive = jax.jit(lambda dx, dt: jax.jvp(u, (x, t), (dx, dt)))

    def left(dx, dt):
        mean, slope = derive(dx, dt)
        return float(jnp.abs(mean - v + (t - s)[:, None] * slope).max())

    assert left(v, one) <= 1e-6
    assert left(jnp.zeros_like(v), one) > 0.1 and left(v, jnp.zeros_like(t)) > 0.1


@pytest.mark.few_paths
def test_loss_is_zero_at_the_exact_map(sde, x64):
    """With the exact velocity for v, on every path, at s = t too. Controls: another map, another velocity."""
    t = jnp.linspace(0.1, 0.98, 6) * sde.T
    s = jnp.array([0.0, 0.02, 0.5, 0.9, 0.995, 1.0]) * t
    x = sde.perturb(jax.random.key(0), gaussian().sample(jax.random.key(1), 6), t)[0]
    fm, v = gaussian().flow_map(sde), gaussian().denoiser(sde).velocity(x, t)
    size = 1 + jnp.sum(v**2, 1)
    options = ConfigDict({**OPTIONS, "power": 0.0})
    loss = jax.jit(lambda fm, v: meanflow.loss(fm, x, t, s, v, options))
    assert np.all(loss(fm, v) <= 1e-16 * size**2)
    other = FlowMap(lambda x, t, s: fm.raw(x, t, 0.9 * s), sde, "v")
    assert np.all(loss(other, v)[1:-1] > 1e8 * loss(fm, v)[1:-1]) and np.all(loss(fm, 1.1 * v) > 1e8 * loss(fm, v))


def test_loss_is_that_of_the_paper():
    """On the linear path: |F - (v - (t - s)(v . d_x F + d_t F))|^2 / (|.|^2 + c)^p, and at s = t flow matching, whatever F."""
    fn = lambda x, t, s: jnp.sin(3 * x) * jnp.cos(2 * t - s)[:, None]
    x, v = jax.random.normal(jax.random.key(0), (2, 5, 3))
    t, s = jnp.linspace(0.2, 0.9, 5), jnp.array([0.0, 0.1, 0.3, 0.6, 0.9])
    d = 3 * jnp.cos(3 * x) * v * jnp.cos(2 * t - s)[:, None] - 2 * jnp.sin(3 * x) * jnp.sin(2 * t - s)[:, None]
    error = jnp.sum((fn(x, t, s) - v + (t - s)[:, None] * d) ** 2, 1)
    options = ConfigDict({**OPTIONS, "power": 0.75, "constant": 1e-3})
    loss = lambda s: meanflow.loss(FlowMap(fn, Linear()), x, t, s, v, options)
    np.testing.assert_allclose(loss(s), error / (error + 1e-3) ** 0.75, rtol=1e-4)
    matched = jnp.sum((fn(x, t, t) - v) ** 2, 1)
    np.testing.assert_allclose(loss(t), matched / (matched + 1e-3) ** 0.75, rtol=1e-4)


SOME = [Linear(), *(pytest.param(sde, marks=pytest.mark.slow) for sde in (VP(), VE(), Trig()))]


@pytest.mark.parametrize("sde", SOME, ids=lambda sde: type(sde).__name__)
def test_gradient_vanishes_at_the_exact_map(sde):
    """With the velocities of examples, in the mean: of F + theta, at theta = 0 within 4 standard errors (n = 40,000, seed 0), and at theta = 0.2 and
    -0.2 more than 10 away, back to 0."""
    n = 40_000
    x0, draw = gaussian().sample(jax.random.key(1), n), jax.random.uniform(jax.random.key(2), (n,))
    t = (0.05 + 0.9 * draw) * sde.T
    x, noise = sde.perturb(jax.random.key(3), x0, t)
    v = expand(sde.alpha_dot(t), x) * x0 + expand(sde.sigma_dot(t), x) * noise
    s = jnp.where(jnp.arange(n) % 2 == 0, t, t * jax.random.uniform(jax.random.key(4), (n,)))

    @jax.jit
    def slope(theta):
        def loss(theta):
            fm = FlowMap(lambda x, t, s: gaussian().flow_map(sde).raw(x, t, s) + theta * expand(1 + sde.sigma(t), x), sde, "v")
            return meanflow.loss(fm, x, t, s, v, OPTIONS)

        slopes = jax.jvp(loss, (theta,), (jnp.ones(()),))[1]
        return slopes.mean() / (slopes.std() / np.sqrt(n))

    assert abs(slope(jnp.float32(0.0))) < 4
    assert slope(jnp.float32(0.2)) > 10 and slope(jnp.float32(-0.2)) < -10


def test_guided_velocity():
    """omega v + (1 - omega - kappa) u(none) + kappa u(label); a network that has the field of guidance omega/(1 - kappa) is its own target; v itself
    where the label is hidden, late, and without guidance."""
    fields = jnp.array([0.5, -0.3, 0.1])  # of two labels, and none
    fn = lambda x, t, s, label: x * fields[label][:, None]
    x, t, label = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.2, 0.4, 0.6, 0.9]), jnp.array([0, 1, 0, 1])
    fm, shown = FlowMap(fn, Linear(), cond=label), jnp.zeros(4, bool)
    options = ConfigDict({**OPTIONS, "omega": 0.2, "kappa": 0.92, "until": 0.75})
    v = x * (0.1 + (fields[label] - 0.1) / 2.5)[:, None]  # the velocity of which 2.5 times the guidance is u
    got = meanflow.guided(fm, 2, x, t, v, shown, options)
    np.testing.assert_allclose(got[:3], (x * fields[label][:, None])[:3], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[3], v[3])
    np.testing.assert_array_equal(meanflow.guided(fm, 2, x, t, v, ~shown, options), v)
    assert meanflow.guided(fm, 2, x, t, v, shown, OPTIONS) is v


SMALL = {
    "UNet": dict(channels=4, multipliers=(1,), blocks=1, attention=(8,), embedding_scale=1.0),
    "DiT": dict(width=16, depth=1, num_heads=2, embedding_scale=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_derivative_through_networks(name):
    """Forwards through convolutions and attention, in float32: within 1 % of central differences; the gradient of the loss reaches all parameters."""
    net = network.Network(getattr(models, name)(**SMALL[name], second_time=True), Linear(), "velocity", 1.0, "time")
    shape, t, s = (8, 8, 1), jnp.array([0.5, 0.9]), jnp.array([0.1, 0.9])
    leaves, tree = jax.tree.flatten(jax.jit(lambda: net.init(jax.random.key(0), shape))())
    params = jax.tree.unflatten(tree, [p + 0.1 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)])
    x, v = jax.random.normal(jax.random.key(1), (2, 2, *shape))
    call = lambda x, t: net.flow_map(params).raw(x, t, s)

    @jax.jit
    def measured(params):
        exact = jax.jvp(call, (x, t), (v, jnp.ones_like(t)))[1]
        ahead, behind = jnp.split(net.flow_map(params).raw(*(jnp.concatenate(p) for p in ahead_and_behind), jnp.tile(s, 2)), 2)
        return exact, (ahead - behind) / 4e-3, jax.grad(lambda p: meanflow.loss(net.flow_map(p), x, t, s, v, OPTIONS).sum())(params)

    ahead_and_behind = ((x + 2e-3 * v, x - 2e-3 * v), (t + 2e-3, t - 2e-3))
    exact, differences, grads = measured(params)
    assert jnp.linalg.norm(exact - differences) < 0.01 * jnp.linalg.norm(exact)
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in jax.tree.leaves(grads))


def test_objective_draws_two_times(monkeypatch):
    """t is the later of two times of the sampler, s the earlier for a quarter of the examples (4 standard errors of 4000), else t; of an example they
    are its own."""
    config = small_config(steps=2)
    config.model = {"name": "MLP", "width": 8, "depth": 1, "second_time": True}
    config.objective.update(loss="meanflow", kind="velocity")
    seen = []
    monkeypatch.setattr(meanflow, "loss", lambda fm, x, t, s, v, options: seen.append((t, s)) or t)
    net, key = network.from_config(config, 0), jax.random.PRNGKey(0)
    dataset = type("Data", (), {"augment": 0, "to_x": lambda self, keys, v: v, "mirror": lambda self, keys, v: v})()
    batch = lambda a, b: {"value": jnp.ones((b - a, 2)), "position": jnp.arange(a, b, dtype=jnp.uint32)}
    params = net.init(jax.random.key(0), (2,))
    for ends in ((0, 4000), (1000, 1010)):
        objectives.loss(net, params, dataset, config.objective, key, batch(*ends))
    (t, s), (part_t, part_s) = seen
    assert np.all(s <= t) and abs(np.mean(s < t) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert abs(t.mean() - 2 / 3) < 4 * np.sqrt(1 / 18 / 4000) and abs(s[s < t].mean() - 1 / 3) < 4 * np.sqrt(1 / 18 / 1000)
    np.testing.assert_array_equal(part_t, t[1000:1010])
    np.testing.assert_array_equal(part_s, s[1000:1010])


@pytest.mark.slow
def test_one_jump_on_a_ring():
    """few_step.md's instance: eight Gaussians on a ring of radius .702, std .06, after 5000 steps of 512. One jump is within .2 (root mean square) of
    the exact flow of the same noise; one Euler step of the exact velocity, the control, is not within .4."""
    from configs import meanflow as configs

    config = configs.get_config("8gaussians")
    ring = GaussianMixture(0.702 * toy.ring(1.0), np.full(8, 0.06))
    net = network.from_config(config, 0)
    dataset = data.Dataset("ring", {}, {}, 0.0, 1.0, 0, 0)
    step = state.make_step(config, net, dataset, axis=None)

    def advance(current, i):
        x = ring.sample(jax.random.fold_in(jax.random.key(5), i), 512)
        position = (i * 512 + jnp.arange(512)).astype(jnp.uint32)
        return step(current, {"value": x, "position": position})[0], None

    trained = jax.jit(lambda s: jax.lax.scan(advance, s, jnp.arange(5000))[0])(state.init(config, net, (2,)))
    x_T = Linear().prior_sample(jax.random.key(6), (4000, 2))
    exact = sample_adaptive(ring.denoiser(Linear()), x_T, 1e-6, 1e-6).x
    off = lambda x: float(jnp.sqrt(jnp.mean(jnp.sum((x - exact) ** 2, 1))))
    found = off(jumps(net.flow_map(trained.ema), x_T, [1.0, 0.0]))
    print(f"RMSE {found:.3f}, two jumps {off(jumps(net.flow_map(trained.ema), x_T, [1.0, 0.5, 0.0])):.3f}")
    assert found <= 0.2 and off(ring.denoiser(Linear()).data(x_T, 1.0)) > 0.4


@pytest.mark.parametrize("options, dropout, classes", [((2.0, 0.0), 0.1, 0), ((2.0, 0.0), 0.0, 10), ((1.0, 1.0), 0.1, 10), ((1.0, -0.1), 0.1, 10)])
def test_guided_targets_that_cannot_be(options, dropout, classes):
    """Without labels, with none hidden, and of kappa outside [0, 1); the control has all three, and an unguided one needs none."""
    said = lambda omega, kappa: ConfigDict({"omega": omega, "kappa": kappa})
    with pytest.raises(ValueError, match="expected these, or omega = 1"):
        meanflow.check(said(*options), bool(classes), dropout)
    meanflow.check(said(2.0, 0.5), True, 0.1)
    meanflow.check(said(1.0, 0.0), False, 0.0)


def test_equal_networks_are_compiled_once():
    """Of two networks made apart, with other parameters, jumps are compiled once, and give each its own; control: another module is compiled."""

    def flow_map(width, seed):
        config = toy_config.get_config("moons")
        config.model.update(width=width, depth=1, second_time=True)
        net = network.from_config(config, 0)
        params = jax.tree.map(lambda a: a + 0.1 * seed, net.init(jax.random.key(seed), (2,)))
        return net.flow_map(params)

    x, compiled = jnp.ones((3, 2)), []
    ends = []
    for width, seed in ((8, 0), (8, 1), (9, 0)):
        ends.append(jumps(flow_map(width, seed), x, np.array([1.0, 0.0])))
        compiled.append(few_step._run._cache_size())
    assert compiled[0] == compiled[1] < compiled[2] and np.abs(ends[0] - ends[1]).max() > 1e-3
