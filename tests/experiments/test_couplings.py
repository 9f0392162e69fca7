"""Couplings against what is known of them, and what coupled models refuse."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from small import same

import samplers
from configs import toy
from experiments import cli, couplings, data, drift, network, runs, sample
from experiments.assignment import assignment
from experiments.metrics import wasserstein2
from experiments.train import train
from samplers import grids, log_likelihood, predictor_corrector, sample_adaptive, sample_sde, solvers
from sde_lib import VP, Denoiser


def points(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), rng.normal(size=(n, 2)) + 3 * rng.integers(2, size=(n, 1))


def coupled_config(name="ot", **options):
    config = toy.get_config("moons")
    config.coupling.update(name=name, **options)
    config.model.update(width=16, depth=1)
    config.optim.warmup = 0
    config.training.update(batch=32, steps=4, checkpoint_every=2, log_every=2)
    return config


class SecondTime:
    """Falsy when it is asked first."""

    asked = 0

    def __bool__(self):
        self.asked += 1
        return self.asked > 1


def stream(config, batch=None, start=0, host=0, hosts=1):
    """Batches of a config's coupled stream."""
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes)
    couple = couplings.from_config(config, dataset, net, hosts)
    source = data.Batches(dataset, batch or config.training.batch, config.seed, host, hosts)
    return lambda k: couple(source[k + start])


@pytest.mark.parametrize("n", [1, 7, 64, 300])
def test_assignment_is_exact(n):
    """The least cost of SciPy's own search, on random, clustered and degenerate costs."""
    x, y = points(n)
    for cost in (couplings.costs(x, y), couplings.costs(x, y[:, :1] + np.zeros(2)), np.zeros((n, n)), np.floor(couplings.costs(x, y)), -x @ y.T):
        ours = assignment(cost)
        np.testing.assert_array_equal(np.sort(ours), np.arange(n))
        np.testing.assert_allclose(cost[np.arange(n), ours].sum(), cost[linear_sum_assignment(cost)].sum(), rtol=1e-9, atol=1e-9)


def test_what_couplings_do():
    """Assignment keeps both multisets at a cost below independent partners; in one dimension it sorts; Sinkhorn's cost tends to it as the
    regularization vanishes, and to that of independent partners as it grows, its rows being drawn (128 points; 400 draws of partners, seed 0)."""
    x, y = points(128)
    rng, cost = np.random.default_rng(0), couplings.costs(x, y)
    of = lambda partner: cost[np.arange(128), partner].mean()
    best = couplings.pairing("ot", rng, x, y)
    np.testing.assert_array_equal(np.sort(best), np.arange(128))
    assert of(best) < 0.5 * of(couplings.pairing("independent", rng, x, y))
    line = couplings.pairing("ot", rng, x[:, :1], y[:, :1])
    np.testing.assert_array_equal(np.argsort(x[:, 0]), np.argsort(y[line, 0]))
    entropic = lambda regularization: of(couplings.pairing("sinkhorn", rng, x, y, None, regularization))
    sharp, soft, flat = entropic(1e-3), entropic(1.0), np.array([entropic(1e4) for _ in range(20)])
    assert abs(sharp / of(best) - 1) < 0.05 and 1.05 * of(best) < soft < cost.mean()
    assert abs(flat.mean() - cost.mean()) < 4 * flat.std() / np.sqrt(20)


def test_sinkhorn_of_gaussians():
    """Of N(0, 1) and N(0, 1) the entropic plan is Gaussian of correlation sqrt(1 + e^2/16) - e/4 (Janati et al. 2020, 2006.02572): at e = 2 s^2 = 1
    that of 1500 pairs is within 4 standard errors, (1 - r^2)/sqrt(1500); the correlation of a regularization twice as small is not."""
    rng, n, correlation = np.random.default_rng(0), 1500, lambda e: np.sqrt(1 + e**2 / 16) - e / 4
    x, y = rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    found = np.corrcoef(x[:, 0], y[couplings.pairing("sinkhorn", rng, x, y, None, 1.0), 0])[0, 1]
    error = (1 - correlation(1.0) ** 2) / np.sqrt(n)
    assert abs(found - correlation(1.0)) < 4 * error < abs(found - correlation(0.5)), (found, correlation(1.0))


@pytest.mark.parametrize("name, regularization", [("ot", 0.0), ("sinkhorn", 0.05), ("sinkhorn", 1e4)])
def test_by_class(name, regularization):
    """Partners change within a class alone, so that noise of each class stays Gaussian: of the assignment a permutation of the class's own."""
    x, y = points(64)
    label = np.arange(64) % 3
    partner = couplings.pairing(name, np.random.default_rng(0), x, y, label, regularization)
    np.testing.assert_array_equal(label[partner], label)
    free = couplings.pairing(name, np.random.default_rng(0), x, y, None, regularization)
    assert np.any(label[free] != label)


TWO = {"mean": 2.0, "std": 0.5}  # of two classes, at -mean and mean


def two_classes(name: str, by_class: bool | None, regularization: float = 0.0, batches: int = 60):
    """x_0, x_1 [n] and labels [n] of a conditional model's coupled batches of 64, on one dimension."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 64 * batches).astype(np.int32)
    x = (TWO["mean"] * (2 * label - 1) + TWO["std"] * rng.standard_normal(len(label))).astype(np.float32)[:, None]
    dataset = data.Dataset("two", {"train": x, "test": x}, {"train": label, "test": label}, 0.0, 1.0, 0, 2)
    config = coupled_config(name, by_class=by_class, regularization=regularization)
    config.model.num_classes, config.training.batch = 2, 64
    couple = couplings.from_config(config, dataset, network.from_config(config, 2))
    found = [couple(data.Batches(dataset, 64, 0)[k]) for k in range(batches)]
    return [np.concatenate([batch[name] for batch in found]).reshape(-1).astype(np.float64) for name in ("value", "source", "label")]


def linear_flow(x0, x1, steps: int = 100) -> tuple[float, float]:
    """Mean and standard deviation to which N(0, 1) is carried by the best velocity a + b x of each time for pairs [n]: exact of Gaussian ones."""
    mean, std = 0.0, 1.0
    for t in (np.arange(steps, 0, -1) - 0.5) / steps:
        b, a = np.polyfit((1 - t) * x0 + t * x1, x1 - x0, 1)
        grow = np.exp(-b / steps)
        mean, std = mean * grow + a * (grow - 1) / b, std * grow
    return mean, std


@pytest.mark.parametrize("name, regularization", [("ot", 0.0), ("sinkhorn", 0.1)])
def test_a_conditional_model_is_coupled_within_its_classes(name, regularization):
    """By default the noise of each class is N(0, 1), so that the flow ends at the class's own mean and likelihood, in closed form for Gaussians.

    3840 pairs, seed 0: means within 0.065 of 2 and -2, four standard errors of both ends' means, and nats within 0.02 of those of the truth. Across
    classes (the control) the noise of a class has a mean of -0.8 or 0.7, and the flow ends at -1.36 and 1.44, at 0.43 nats too many."""
    x0, x1, label = two_classes(name, None, regularization)
    across = two_classes(name, False, regularization)
    for k, mean in enumerate((-TWO["mean"], TWO["mean"])):
        data_of, noise = x0[label == k], x1[label == k]
        nats = lambda m, s, x=data_of: np.mean(0.5 * ((x - m) / s) ** 2 + np.log(s)) + 0.5 * np.log(2 * np.pi)
        assert abs(noise.mean()) < 4 / np.sqrt(len(noise)) and abs(noise.std() - 1) < 4 / np.sqrt(2 * len(noise))
        flow = linear_flow(data_of, noise)
        assert flow[0] == pytest.approx(mean, abs=0.065) and nats(*flow) == pytest.approx(nats(mean, TWO["std"]), abs=0.02), flow
        wrong = linear_flow(*(a[across[2] == k] for a in across[:2]))
        assert abs(across[1][across[2] == k].mean()) > 0.5
        assert abs(wrong[0] - mean) > 0.2 and nats(*wrong) > nats(mean, TWO["std"]) + 0.2, wrong


def test_conditions_that_are_no_classes_are_refused(capsys):
    """Two examples of the same embeddings need not be there; whoever accepts the bias can have it, and is told."""
    net = SimpleNamespace(none=(0.0, 0.0), module=SimpleNamespace(embeddings=(4, 8, 8)))
    config = coupled_config().coupling
    with pytest.raises(ValueError, match="conditioned on embeddings joins noise across conditions"):
        couplings.within_class(config, net)
    config.by_class = False
    assert not couplings.within_class(config, net) and "biased" in capsys.readouterr().out
    config.by_class, net = None, SimpleNamespace(none=None, module=None)
    assert not couplings.within_class(config, net)  # an unconditional model has no labels to be wrong


def test_a_run_from_before_resumes_as_it_was_trained(tmp_path):
    """Its config.json says that partners were of all classes, the same command's config says nothing: no drift, and partners are as they were. A new
    run, and an option that is given, are left alone."""
    config = coupled_config()
    older = config.copy_and_resolve_references()
    older.coupling.by_class = False
    (tmp_path / "config.json").write_text(older.to_json())
    completed = drift.completed(config, tmp_path)
    assert completed.coupling.by_class is False and config.coupling.by_class is None
    assert cli.flat(completed) == cli.flat(older)
    config.coupling.by_class = True
    assert drift.completed(config, tmp_path).coupling.by_class is True


def test_noise_after_another_batch_size_is_new():
    """Groups are numbered anew: 32 examples after 4 batches of 16 are joined with noise that none of these had."""
    before = stream(coupled_config())
    dataset, config = data.load(coupled_config().data), coupled_config()
    config.training.batch = 64
    stretch = data.Stretch(4, 128)
    couple = couplings.from_config(config, dataset, network.from_config(config, 0))
    batch = data.Batches(dataset, 64, config.seed, stretch=stretch)[4]
    np.testing.assert_array_equal(batch["position"], np.arange(128, 192))
    rows = lambda source: set(np.round(source[:, 0], 6).tolist())
    used = rows(np.concatenate([before(k)["source"] for k in range(4)]))
    assert not used & rows(replace(couple, stretch=stretch)(batch)["source"])
    assert used & rows(couple(batch)["source"])  # the control


@pytest.mark.parametrize("source", ["", "8gaussians"])
def test_pairs_are_of_the_stream(source):
    """Batches of twice the size, two hosts, and grain from the middle on have the same pairs; both multisets are those of independent partners; and
    partners of the optimal transport are nearer."""
    config = coupled_config(group=16, source={"name": source, "variant": "", "path": ""})
    few, double, alone = stream(config), stream(config, 64), stream(coupled_config("independent", source=config.coupling.source)) if source else None
    every = [few(k) for k in range(4)]
    both = [np.concatenate([b[name] for b in every[2:]]) for name in ("value", "source")]
    for name, want in zip(("value", "source"), both):
        np.testing.assert_array_equal(double(1)[name], want)
    hosts = [stream(config, host=host, hosts=2)(3) for host in range(2)]
    np.testing.assert_array_equal(np.concatenate([h["source"] for h in hosts]), every[3]["source"])
    dataset = data.load(config.data)
    couple = couplings.from_config(config, dataset, network.from_config(config, 0))
    for k, batch in zip(range(2, 4), data.batches(dataset, 32, config.seed, 2, couple)):
        np.testing.assert_array_equal(batch["source"], every[k]["source"])
    if source:
        free = alone(0)
        np.testing.assert_array_equal(np.sort(free["source"], 0), np.sort(every[0]["source"], 0))
        x = dataset.to_x(None, free["value"])
        cost = lambda batch: float(jnp.sum((x - batch["source"]) ** 2))
        assert cost(every[0]) < 0.8 * cost(free)


def test_mirrored_pairs_and_levels():
    """Half of the images of a coupled batch are mirrored before they are joined, and no more by the loss; noise in the source is N(0, 1)."""
    config = coupled_config(group=32)
    config.data.update(name="digits", variant="", flip=True)
    dataset = data.load(config.data)
    config.model.name = "MLP"
    batch, plain = stream(config)(0), data.Batches(dataset, 32, 0)[0]
    turned = [np.array_equal(a, b[:, ::-1]) for a, b in zip(batch["value"], plain["value"])]
    kept = [np.array_equal(a, b) for a, b in zip(batch["value"], plain["value"])]
    assert 5 < sum(turned) < 27 and all(np.logical_or(turned, kept))
    assert batch["source"].dtype == np.float32 and abs(batch["source"].std() - 1) < 0.06


def test_training_and_sampling_of_two_data_sets(tmp_path):
    """A run from 8 gaussians to moons resumes bit-identically, its samples begin at the source's test examples, and its noise is no prior's."""
    config = coupled_config(source={"name": "8gaussians", "variant": "", "path": ""})
    whole = train(config, tmp_path / "a")
    with pytest.raises(cli.Stopped):
        train(config, tmp_path / "b", stop=SecondTime())
    assert same(train(config, tmp_path / "b"), whole)
    run = runs.load_run(tmp_path / "a")
    assert run.denoiser().coupled
    options = {"steps": 5, "grid": "uniform", "tolerance": 1e-3}
    few, _ = sample.generate(run, 5, 4, 0, solver="heun", **options)
    many, _ = sample.generate(run, 8, 8, 0, solver="heun", **options)
    np.testing.assert_allclose(few, many[:5], atol=1e-5)
    source = run.source.to_x(None, run.source.values["test"][:3])
    np.testing.assert_allclose(sample.starts(run)(jax.random.split(jax.random.key(0), 3), np.arange(3)), source)
    with pytest.raises(ValueError, match="a stochastic solver of a coupled model"):
        sample.generate(run, 4, 4, 0, solver="ancestral", **options)


@pytest.mark.slow
def test_coupled_models_refuse_what_takes_a_score(mixture):
    """Each in one line; the flow and its likelihood stand: of an exact field the same samples and the exact density."""
    sde = VP()
    exact = mixture.denoiser(sde)
    den = Denoiser(exact.fn, sde, exact.kind, coupled=True)
    x, times, key = jnp.ones((2, 2)), grids.log_snr(sde, 5), jax.random.key(0)
    operator = samplers.operators.inpainting(np.array([True, False]))
    for refused in (
        lambda: den.score(x, 0.5),
        lambda: samplers.sample(den, x, times, solvers.ancestral(), key),
        lambda: predictor_corrector(den, x, times, solvers.ddim(), None),
        lambda: sample_sde(den, x, times, key),
        lambda: samplers.variational_bound(den, x, key),
        lambda: samplers.classifier_guidance(den, lambda x, t, y: x[:, 0], jnp.zeros(2)),
        lambda: samplers.dps(den, operator, x[:, :1], times),
    ):
        with pytest.raises(ValueError, match="coupled model"):
            refused()
    np.testing.assert_array_equal(samplers.sample(den, x, times, solvers.ddim()), samplers.sample(exact, x, times, solvers.ddim()))
    np.testing.assert_allclose(sample_adaptive(den, x).x, sample_adaptive(exact, x).x, atol=1e-5)
    ours = log_likelihood(den, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.log_prob, mixture.marginal_log_prob(sde, x, sde.eps), atol=5e-3)
    assert np.all(np.isnan(ours.truncation)) and samplers.threshold(den).coupled


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "otto"}, "expected one of independent, ot, sinkhorn"),
        ({"group": 24}, "a divisor of the 32 examples"),
        ({"group": -1}, "expected at least 0"),
        ({"name": "sinkhorn"}, "expected above 0 of sinkhorn"),
        ({"regularization": 0.1}, "0 of others"),
        ({"by_class": True}, "data with classes"),
        ({"source": {"name": "digits", "variant": "", "path": ""}}, r"expected \(2,\), as the data"),
        ({"source": {"name": "moon", "variant": "", "path": ""}}, "unknown data set 'moon'"),
    ],
)
def test_bad_couplings(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(coupled_config(**options), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_step_of_a_joined_flow(tmp_path):
    """Check 10: from noise to moons by 3000 steps of batch 128, one Euler step of the flow of optimal transport is within W2 0.45 of 2000 test
    points, and 4 times nearer than that of independent noise (the control), seed 0."""
    found = {}
    for name in ("independent", "ot"):
        config = toy.get_config("moons")
        config.data.variant = "torchcfm"
        config.coupling.name = name
        config.training.update(batch=128, steps=3000)
        train(config, tmp_path / name)
        run = runs.load_run(tmp_path / name)
        x_T = run.network.sde.prior_sample(jax.random.key(0), (2000, 2))
        found[name] = wasserstein2(run.dataset.from_x(x_T - run.denoiser().velocity(x_T, 1.0)), run.dataset.values["test"][:2000])
    assert found["ot"] <= 0.45 and found["independent"] >= 4 * found["ot"], found
