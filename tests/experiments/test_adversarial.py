"""Adversarial terms: a discriminator on the features of a frozen network."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import config_of, same, save_random

import models
from configs import default
from experiments import adversarial, consistency, data, export, network, objectives, runs, sample, train
from models.discriminator import Discriminator
from sde_lib import VP, GaussianMixture, Linear


def options(**given):
    return ConfigDict({**default.get_config().objective.adversarial, "weight": 1.0, **given})


def heads(*shapes, num_classes=0):
    """A discriminator, its parameters without zeros, and features of 3 examples with these shapes."""
    net, keys = Discriminator(num_classes, 8), jax.random.split(jax.random.key(0), len(shapes) + 1)
    features = tuple(jax.random.normal(key, (3, *shape)) for key, shape in zip(keys, shapes))
    params = jax.jit(net.init)(keys[-1], features, jnp.ones(3))["params"]
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape, a.dtype), params)
    return net, params, features


@pytest.mark.slow
def test_discriminator():
    """A logit for each place, which depends on the features, the time and the label, and on no batch-mate."""
    net, params, features = heads((4,), (5, 4), (6, 6, 4), num_classes=3)
    call = jax.jit(lambda f, t, label: net.apply({"params": params}, f, t, label))
    t, label = jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 1, 2])
    found = call(features, t, label)
    assert [a.shape for a in found] == [(3,), (3, 5), (3, 6, 6)]
    for other in (call(jax.tree.map(jnp.negative, features), t, label), call(features, t / 2, label), call(features, t, 2 - label)):
        assert all(np.abs(a - b).reshape(3, -1).max(1)[[0, 2]].min() > 1e-4 for a, b in zip(found, other))
    for a, b in zip(call(jax.tree.map(lambda a: a[1:2], features), t[1:2], label[1:2]), found):
        np.testing.assert_allclose(a, b[1:2], rtol=1e-5, atol=1e-5)


def test_each_sees_its_own_gradient():
    """L_D has none in the samples and L_G none in the discriminator, to the last bit; with both at once each gets what it gets alone."""
    net, params, _ = heads((2,), (2,))
    ours, real = jax.random.normal(jax.random.key(1), (2, 3, 2))
    discriminator = lambda params, found: net.apply({"params": params}, found, jnp.ones(3))
    loss = lambda params, x, real, weight: adversarial.term(discriminator, params, lambda x: (x, jnp.sin(x)), x, real, options(weight=weight)).sum()
    slopes = jax.jit(jax.grad(loss, (0, 1, 2)))
    found = {weight: slopes(params, ours, real, weight) for weight in (0.0, 1.0)}
    assert same(found[0.0][0], found[1.0][0]) and all(np.any(a) for a in jax.tree.leaves(found[1.0][0]))
    assert not np.any(found[0.0][1]) and np.all(found[1.0][1]) and not np.any(found[1.0][2])


def test_optimum_of_the_hinge(x64):
    """Of a table of real p and fake q the best D is sign(p - q), where L_D = 2 sum min(p, q) (2 without a difference); any other is worse."""
    p, q = np.random.default_rng(0).dirichlet(np.ones(6), 2)
    place, other = jnp.repeat(jnp.arange(6), 6), jnp.tile(jnp.arange(6), 6)  # all pairs of a fake and a real
    of = lambda table: adversarial.term(
        lambda table, found: (table[found[0].astype(int)[:, 0]],),
        table,
        lambda x: (x,),
        place[:, None] * 1.0,
        other[:, None] * 1.0,
        options(weight=0.0, penalty=0.0),
    )
    loss = lambda table: float(jnp.sum(q[place] * p[other] * of(jnp.asarray(table))))
    best = np.sign(p - q)
    assert loss(best) == pytest.approx(2 * np.minimum(p, q).sum(), abs=1e-12) and loss(np.zeros(6)) == pytest.approx(2.0)
    assert all(loss(best + 0.3 * change) > loss(best) for change in np.random.default_rng(1).standard_normal((50, 6)))


@pytest.mark.slow
def test_penalty_is_that_of_the_slopes(x64):
    """By central differences of the mean logit in each feature; other features of the example do not enter."""
    net, params, features = heads((2, 3), (4,))
    call = lambda f: net.apply({"params": params}, f, jnp.ones(3))
    means = jax.jit(lambda f: jnp.stack([adversarial.places(a) for a in call(f)]))
    square = np.zeros(3)
    for k, feature in enumerate(features):
        for place in np.ndindex(feature.shape[1:]):
            bent = [features[:k] + (feature.at[(slice(None), *place)].add(step),) + features[k + 1 :] for step in (1e-5, -1e-5)]
            square += ((means(bent[0]) - means(bent[1]))[k] / 2e-5) ** 2
    np.testing.assert_allclose(jax.jit(lambda f: adversarial.penalty(call, f))(features), square, rtol=1e-6)
    discriminator = lambda params, found: call(found)
    total = jax.jit(lambda penalty: adversarial.term(discriminator, params, lambda x: features, features[1], features[1], options(penalty=penalty)))
    np.testing.assert_allclose(total(0.5) - total(0.0), 0.5 * square, rtol=1e-6)


SMALL = {
    "DiT": (dict(width=16, depth=3, num_heads=2, remat=True), 3, (16, 16)),
    "MMDiT": (dict(width=16, depth=2, num_heads=2), 2, (16, 16)),
    "UNet": (dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), remat=True), 8, (8, 8, 8)),
    "EDM2": (dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, remat=True), 10, (8, 8, 8)),
    "ResidualMLP": (dict(width=16, depth=2), 3, (16,)),
    "MLP": (dict(width=16, depth=2), 3, (16,)),
}


@pytest.mark.parametrize("name", [n if "MLP" in n else pytest.param(n, marks=pytest.mark.slow) for n in network.FEATURES])
def test_features(name):
    """One for each block, of the blocks' shapes, whatever the network predicts; of an example alone."""
    chosen, count, shape = SMALL[name]
    net = network.Network(getattr(models, name)(**chosen, num_classes=3), VP(), "noise", 1.0, "time")
    x, t, label = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 1, 2])
    params = jax.jit(lambda: net.init(jax.random.key(1), x.shape[1:]))()
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    features = jax.jit(lambda x, t, label: net.features(params, x, t, label))
    found = features(x, t, label)
    assert len(found) == count and found[0].shape == (3, *shape)
    for a, b in zip(features(x[1:2], t[1:2], label[1:2]), found):
        np.testing.assert_allclose(a, b[1:2], atol=1e-4)
    assert all(np.abs(a - b).reshape(3, -1).max(1).min() > 1e-4 for a, b in zip(features(2 * x, t, label), found))
    if name == "MLP":  # by hand
        h = jnp.concatenate([x.reshape(3, -1), t[:, None], jnp.eye(4)[label]], 1)
        for k, feature in enumerate(found):
            h = h @ params[f"Dense_{k}"]["kernel"] + params[f"Dense_{k}"]["bias"]
            np.testing.assert_allclose(feature, h, rtol=1e-4, atol=1e-5)
            h = jax.nn.silu(h)


def test_noise_goes_on(sde, x64):
    """From s to t the law of x_t is the path's: r alpha_s = alpha_t, r^2 sigma_s^2 + std^2 = sigma_t^2; from s to s nothing changes."""
    s, t = sde.T * jnp.array([1e-3, 0.1, 0.5]), sde.T * jnp.array([0.3, 0.8, 0.9])
    zero, one = jnp.zeros((3, 1)), jnp.ones((3, 1))
    r, std = adversarial.renoised(sde, one, s, t, zero), adversarial.renoised(sde, zero, s, t, one)
    np.testing.assert_allclose(r[:, 0] * sde.alpha(s), sde.alpha(t), rtol=1e-9)
    np.testing.assert_allclose((r[:, 0] * sde.sigma(s)) ** 2 + std[:, 0] ** 2, sde.sigma(t) ** 2, rtol=1e-9)
    np.testing.assert_array_equal(adversarial.renoised(sde, one, s, s, one), one)
    assert np.all(np.isfinite(jax.grad(lambda x: adversarial.renoised(sde, x, s, s, one).sum())(one)))


def test_distillation_of_the_data(x64):
    """With an exact teacher and samples that are data, a shift has no gradient: E[x_0 - E[x_0 | x_t]] = 0, exactly on four points of N(m, s^2) and
    noise; samples that are shifted are led back, with c(t) lambda (1 - s^2 alpha^2/S^2) of the shift."""
    sde, m, std = Linear(), 0.3, 0.8
    teacher = GaussianMixture([[m]], [std]).denoiser(sde)
    z, noise = (jnp.asarray(a.ravel())[:, None] for a in np.meshgrid([-1.0, 1.0], [-1.0, 1.0]))
    t = jnp.full(4, 0.4)
    slope = jax.grad(lambda shift: adversarial.distillation(teacher, m + std * z + shift, t, noise, options()).mean())
    assert abs(slope(0.0)) < 1e-12
    c, share = 0.6 / np.hypot(0.6, 0.4), 0.6**2 * std**2 / (0.6**2 * std**2 + 0.4**2)
    assert slope(0.1) == pytest.approx(2 * 2.5 * c * 0.1 * (1 - share))


def small(loss="add", second=False, **given):
    config = config_of(num_classes=10, second_time=second)
    config.objective.update(loss=loss, label_dropout=0.1)
    config.objective.adversarial.update(weight=1.0 if loss == "add" else 0.1)
    config.objective.consistency.update(given)
    if loss == "add":
        config.objective.time.update(name="grid", count=4)
    config.training.init = "teacher"
    return config


PCM = dict(step="ddim", count=9, grid="uniform", to="phase", phases=4, target=0.5)
CTM = dict(step="heun", count=9, to="random", through=True, target=0.9, regression=1.0)


def test_times_of_the_features(monkeypatch):
    """PCM's are in the phase that begins at s, any of them; those against data are LADD's: logit-normal on the linear path (by quantiles)."""
    config, seen = small("consistency", True, **PCM), []
    config.objective.adversarial.real = "target"
    net = network.from_config(config, 10)
    monkeypatch.setattr(adversarial, "term", lambda discriminator, params, features, ours, real, chosen: features(ours))
    features = lambda x, t, label: seen.append(np.asarray(t))
    share, draw = jnp.repeat(jnp.arange(4) / 4, 500), jnp.tile((jnp.arange(500) + 0.5) / 500, 4)
    s, x = consistency.grid_time(net.sde, "uniform", share), jnp.ones((2000, 2))
    objectives.opposed(net, {"discriminator": None}, features, config.objective, x, None, x, x, s, draw, x)
    got = np.asarray(consistency.grid_share(net.sde, "uniform", seen[0]))
    np.testing.assert_allclose(got, share + draw / 4, atol=1e-5)
    config.objective.adversarial.real = "data"
    objectives.opposed(net, {"discriminator": None}, features, config.objective, x, None, x, None, 0 * s + 1e-5, (jnp.arange(2000) + 0.5) / 2000, x)
    logits = np.log(seen[1] / (1 - seen[1]))
    np.testing.assert_allclose(np.quantile(logits, [0.1587, 0.5, 0.8413]), [0, 1, 2], atol=0.01)


@pytest.mark.slow
def test_a_discriminator_of_embeddings():
    """Of a network that is told pairs of embeddings its heads are told the pooled ones."""
    module = models.MMDiT(width=16, depth=1, num_heads=2, embeddings=(3, 4, 5))
    net = network.Network(module, Linear(), "velocity", 1.0, "time", final=True, discriminator=Discriminator())
    params = net.init(jax.random.key(0), (8, 8, 1))
    params["discriminator"] = jax.tree.map(lambda a: a + 0.1, params["discriminator"])
    x, t = jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5)
    told = [jax.random.normal(jax.random.key(i), (2, 5)) for i in range(2)]
    one, other = (net.discriminate(params["discriminator"], net.features(params, x, t), t, (jnp.ones((2, 3, 4)), pooled)) for pooled in told)
    assert [a.shape for a in one] == [(2, 16)] and np.all(np.abs(one[0] - other[0]).max(1) > 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ADD", "PCM", "CTM"])
def test_a_run(tmp_path, name):
    """Trains, resumes bit-identically, leaves its teacher as it was, samples by jumps, and so does its export; losses are of each example alone."""
    config = small() if name == "ADD" else small("consistency", True, **(PCM if name == "PCM" else CTM))
    config.objective.adversarial.real = "target" if name == "PCM" else "data"
    teacher = config_of(num_classes=10)
    teacher.objective.label_dropout = 0.1
    save_random(teacher, tmp_path / "teacher")
    config.teacher.workdir = str(tmp_path / "teacher")
    whole = train.train(config, tmp_path / "whole")
    config.training.keep = 0
    train.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert same(whole, train.train(config, tmp_path / "run"))
    before, run = runs.load_run(tmp_path / "teacher"), runs.load_run(tmp_path / "run")
    assert same(before.params, runs.load_run(tmp_path / "run" / "teacher").params)
    began = network.from_config(config, 10).init(jax.random.split(jax.random.PRNGKey(config.seed))[0], (8, 8, 1))["discriminator"]
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(began), jax.tree.leaves(whole.params["discriminator"])))
    export.write(str(tmp_path / "run"), tmp_path / "export", which=("ema",))
    told = [sample.generate(r, 4, 4, 0, solver="jumps", steps=2, grid="few", tolerance=1e-3) for r in (run, runs.load_run(tmp_path / "export"))]
    assert told[0][0].shape == (4, 8, 8, 1) and told[0][1] == 2 and same(told[0][0], told[1][0])

    dataset, net = data.load(config.data), run.network
    given = objectives.Given(before.denoiser(jnp.zeros(1, int)), None, 0.5, features=jax.tree_util.Partial(before.network.features, before.params))
    batch = {"value": dataset.values["train"][:16], "label": dataset.labels["train"][:16], "position": np.arange(16, dtype=np.uint32)}
    loss = jax.jit(lambda batch: objectives.loss(net, run.params, dataset, config.objective, whole.key, batch, given))
    np.testing.assert_allclose(loss(jax.tree.map(lambda a: a[5:9], batch)), loss(batch)[5:9], rtol=1e-4)


@pytest.mark.slow
def test_the_sizes_that_are_told(tmp_path, capsys):
    """Training tells the size of the network, not of the discriminator; features of another shape are named before."""
    config, teacher = small(), config_of(num_classes=10)
    teacher.model.width = 24
    save_random(teacher, tmp_path / "teacher")
    config.teacher.workdir = str(tmp_path / "teacher")
    with pytest.raises(ValueError, match="expected a like network"):
        train.train(config, tmp_path / "run")
    config.model.width = 24
    train.train(config, tmp_path / "run")
    alone = runs.load_run(tmp_path / "teacher").params
    assert f"{sum(a.size for a in jax.tree.leaves(alone)):,} parameters" in capsys.readouterr().out


def test_mistakes():
    for loss, second, change, said in (
        ("add", False, {"weight": 0.0}, "expected a weight above 0"),
        ("add", True, {}, "second_time = True"),
        ("add", False, {"real": "target"}, "real = 'target'"),
        ("add uniform", False, {}, "time.name = 'uniform'"),
        ("add on EDM", False, {}, "on the path of EDM all noise"),
        ("add", False, {"real": "noise"}, "expected data or target"),
        ("add", False, {"penalty": -1.0}, "penalty -1.0"),
        ("regression", False, {}, "expected add, or consistency"),
        ("consistency", True, {}, "expected samples at the data"),
    ):
        loss, _, wrong = loss.partition(" ")
        config = small(loss, second, **(dict(step="ddim", to="random") if loss == "consistency" else {}))
        config.objective.adversarial.update(change)
        if wrong == "uniform":
            config.objective.time.name = wrong
        elif wrong:
            config.sde.name, config.objective.kind = "EDM", "edm"
        with pytest.raises(ValueError, match=said):
            network.from_config(config, 10)
    config = small()
    config.lora.rank = 2
    with pytest.raises(ValueError, match="lora.rank = 2 with a discriminator"):
        network.from_config(config, 10)
    config = small("consistency", True, step="ddim", to="random")
    config.objective.adversarial.real = "target"
    with pytest.raises(ValueError, match="expected phase"):
        network.from_config(config, 10)
