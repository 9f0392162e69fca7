"""Stochastic interpolants and Schroedinger bridges as runs."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats
from small import small_config

from configs import toy
from experiments import data, guidance, latent, likelihood, network, objectives, runs, sample
from experiments.train import train
from samplers import log_likelihood
from sde_lib import Denoiser, Linear, Trig
from sde_lib.interpolants import Interpolant

STD = 0.6


def coupled_config(name="independent", **options):
    config = toy.get_config("moons")
    config.coupling.update(name=name, **options)
    config.model.update(width=16, depth=1)
    config.training.update(batch=32, steps=4, checkpoint_every=2, log_every=2)
    return config


def slope(interpolant, t, kind):
    """c(t) of E[velocity | x_t] = c x_t, or of E[z | x_t], of ends N(0, STD^2) and N(0, 1)."""
    sde, gamma = interpolant.sde, interpolant.gamma
    variance = lambda t: (sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2 + interpolant.variance(t)
    found = gamma(t) if kind == "noise" else jax.vmap(jax.grad(variance))(t) / 2
    return (found / variance(t))[:, None]


@pytest.mark.parametrize("kind", ["velocity", "noise"])
@pytest.mark.parametrize("interpolant", [Interpolant(constant=0.3), Interpolant(bridge=1.0), Interpolant(Trig(), 0.2, 0.7)], ids=str)
def test_minimum(x64, interpolant, kind):
    """The regression's gradient in the slope is 0 at the conditional mean (4 standard errors of 40,000, seed 0), and not at that without gamma."""
    n, keys = 40_000, jax.random.split(jax.random.key(0), 4)
    x0, x1, z = (scale * jax.random.normal(key, (n, 1)) for scale, key in zip((STD, 1.0, 1.0), keys))
    t = interpolant.sde.T * jax.random.uniform(keys[3], (n,), minval=0.01, maxval=0.99)

    def each(bend, of):
        net = SimpleNamespace(interpolant=interpolant, sde=interpolant.sde, kind=kind)
        call = lambda params, x, t, label: (slope(of, t, kind) + params) * x
        net = type("Linear", (), {"__call__": lambda self, *args: call(*args), **vars(net)})()
        return objectives.interpolated(net, bend, x0, x1, z, t, None, {})

    def sigmas(of):
        grads = jax.jvp(lambda bend: each(bend, of), (0.0,), (1.0,))[1]
        return abs(float(grads.mean() / grads.std())) * np.sqrt(n)

    assert sigmas(interpolant) < 4
    assert max(sigmas(Interpolant(interpolant.sde, constant)) for constant in (0.0, 1.5)) > 8


@pytest.mark.slow
def test_runs(tmp_path):
    """A bridge between two sets by its velocity and its noise: as an SDE, of the strength asked for, and as an ODE; what needs a score is refused."""
    config = coupled_config("sinkhorn", regularization=2.0, bridge=1.0, source={"name": "8gaussians"})
    train(config, tmp_path / "velocity")
    config.objective.kind = "data"
    with pytest.raises(ValueError, match="of an interpolant"):
        network.from_config(config, 0)
    config.objective.kind = "noise"
    train(config, tmp_path / "noise")
    run = runs.load_run(tmp_path / "velocity")
    given = {"n": 40, "batch": 16, "seed": 0, "grid": "uniform", "tolerance": 1e-3}
    draw = lambda **more: sample.generate(run, **{**given, **more})
    sde, nfe = draw(solver="bridge", steps=20, score=str(tmp_path / "noise"))
    assert nfe == 39 and np.all(np.isfinite(sde))
    np.testing.assert_array_equal(sde[:8], draw(solver="bridge", steps=20, score=str(tmp_path / "noise"), n=8, batch=8)[0])
    ode, _ = draw(solver="euler", steps=20)
    still, _ = draw(solver="bridge", steps=20, score=str(tmp_path / "noise"), strength=0.0)
    assert np.abs(still - ode).mean() < 0.1 * np.abs(sde - ode).mean()
    for wrong, said in (
        ({"solver": "bridge", "steps": 20}, "--score=WORKDIR together"),
        ({"solver": "bridge", "steps": 20, "score": str(tmp_path / "velocity")}, "and kind noise"),
        ({"solver": "euler_maruyama", "steps": 20}, "coupled"),
    ):
        with pytest.raises(ValueError, match=said):
            draw(**wrong)
    with pytest.raises(ValueError, match="--score"):
        runs.load_run(tmp_path / "noise").denoiser()


@pytest.mark.slow
def test_runs_of_constant_noise(tmp_path):
    """I-CFM by its velocity and its noise: an SDE of any D by the bridge's solver, the ODE at strength 0; a D of its own it has not."""
    config = coupled_config(constant=0.3)
    train(config, tmp_path / "velocity")
    config.objective.kind = "noise"
    train(config, tmp_path / "noise")
    run = runs.load_run(tmp_path / "velocity")
    given = {"n": 40, "batch": 16, "seed": 0, "grid": "uniform", "tolerance": 1e-3, "steps": 20}
    draw = lambda **more: sample.generate(run, **{**given, **more})[0]
    of = {"solver": "bridge", "score": str(tmp_path / "noise")}
    ode, sde, still = draw(solver="euler"), draw(**of, diffusion="sigma"), draw(**of, diffusion="sigma", strength=0.0)
    assert np.all(np.isfinite(sde)) and np.abs(still - ode).mean() < 0.1 * np.abs(sde - ode).mean()
    np.testing.assert_array_equal(draw(**of, strength=0.0), still)
    with pytest.raises(ValueError, match="expected --diffusion=constant"):
        draw(**of)


def test_gamma():
    with pytest.raises(ValueError, match="bridge = -1"):
        network.from_config(coupled_config(bridge=-1.0), 0)
    assert network.from_config(coupled_config(constant=0.1), 0).interpolant == Interpolant(Linear(), 0.1)


def still(**coupling):
    """A run of velocity 0, along which x stays."""
    config = coupled_config(**coupling)
    dataset, net = data.load(config.data), network.from_config(config, 0)
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(lambda: net.init(jax.random.key(0), dataset.shape)))
    return runs.Run(Path("run"), config, dataset, net, params, "ema", 0)


@pytest.mark.parametrize("source", ["", "8gaussians"])
def test_the_law_at_the_start(source):
    """Of velocity 0: its source and N(0, constant^2), by variance (4 standard errors of 8000 numbers, seed 0) and by the test of
    Kolmogorov and Smirnov (0.1 %); not without the constant. By bridges as by ODEs, whatever the batch."""

    def drawn(constant):
        run = still(constant=constant, bridge=1.0, source={"name": source})
        x, _ = sample.generate(run, 4000, 4000, 0, solver="euler", steps=2, grid="uniform", tolerance=1e-3)
        return run, np.asarray(run.dataset.to_x(None, x), np.float64)

    def sigmas(x, variance):
        return abs(x.var() / variance - 1) * np.sqrt(x.size / 2)

    (run, x), (_, without) = drawn(0.5), drawn(0.0)
    start = 0.0 if not source else run.source.to_x(None, run.source.values["test"][np.arange(4000) % len(run.source.values["test"])])
    z, variance = (x - start).ravel(), 0.25 + (not source)
    assert sigmas(z, variance) < 4 and stats.kstest(z / variance**0.5, "norm").pvalue > 1e-3
    assert sigmas((without - start).ravel(), variance) > 10
    index, draw = np.arange(8), sample.sampler(Linear(), (2,), ".", "bridge", 3, "uniform", 1e-3, strength=0.0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), index)
    np.testing.assert_allclose(draw(guidance.Guide(run, score=run).bridge(), keys, sample.starts(run)(keys, index))[0], x[:8], atol=1e-5)


@pytest.mark.parametrize("interpolant", [Interpolant(constant=0.3), Interpolant(bridge=1.0), Interpolant(Trig(), 0.5, 0.7)], ids=str)
def test_likelihood(x64, interpolant):
    """Of N(0, STD^2): that of x at eps, by the flow's own prior to 1e-4, and not by N(0, sigma(T)^2) where it has a constant."""
    x, eps, sde = np.linspace(-2, 2, 9)[:, None], 1e-3, interpolant.sde
    den = Denoiser(lambda x, t: slope(interpolant, t, "velocity") * x, sde, "velocity", coupled=True)
    exact = stats.norm(0, ((sde.alpha(eps) * STD) ** 2 + sde.sigma(eps) ** 2 + interpolant.variance(eps)) ** 0.5).logpdf(x)[:, 0]
    error = lambda **options: np.abs(log_likelihood(den, x, eps=eps, **options).log_prob - exact).max()
    assert error(prior_std=float(np.hypot(sde.sigma(sde.T), interpolant.gamma(sde.T)))) < 1e-4
    assert not interpolant.constant or error() > 1e-2


def test_likelihood_and_latents_of_a_run():
    """Of velocity 0 and constant 0.75, whose x is N(0, 1.25^2) at all times: its density, its latents in units of that, and draws of them."""
    run = still(constant=0.75)
    x = run.dataset.to_x(None, run.dataset.values["test"][:8])
    found = likelihood.score(run, "test", 8, 8, 0, progress=lambda *_, **__: None)["score"]
    of_x = lambda std: run.dataset.score(np.sum(stats.norm(0, std).logpdf(x), 1))
    np.testing.assert_allclose(found, of_x(1.25), atol=1e-3)
    assert np.abs(found - of_x(1.0)).max() > 0.1
    np.testing.assert_allclose(latent.encode(run, "test", 8, 8, 0, 1e-5, "uniform")["latent"], x, atol=1e-4)
    draws = latent.prior(run, 4000, 0).astype(np.float64)
    assert abs(draws.var() / 1.25**2 - 1) < 4 * np.sqrt(2 / draws.size)  # seed 0
    np.testing.assert_allclose(latent.standard(run, draws), draws / 1.25)


@pytest.mark.parametrize("name", ["constant", "linear", "increasing_decreasing"])
@pytest.mark.parametrize("interpolant", [Interpolant(constant=0.3), Interpolant(bridge=1.0)], ids=str)
def test_strengths_of_interpolants(interpolant, name):
    """The variance of N(0, STD^2) at the end is that of x there within 4 standard errors (20,000 samples, seed 0, 200 steps); not by half of z."""
    n, steps = 20_000, 200
    field = lambda kind, scale: Partial(lambda x, t: scale * slope(interpolant, t, kind) * x)
    keys = jax.random.split(jax.random.key(0), n)
    x_T = float(np.hypot(1.0, interpolant.gamma(1.0))) * jax.random.normal(jax.random.key(1), (n, 1))
    draw = sample.sampler(Linear(), (1,), ".", "bridge", steps, "uniform", 1e-3, diffusion=name, strength=1.5)

    def sigmas(scale):
        x_0 = draw((interpolant, field("velocity", 1.0), field("noise", scale)), keys, x_T)[0]
        return abs(np.asarray(x_0, np.float64).var() / (STD**2 + interpolant.constant**2) - 1) / np.sqrt(2 / n)

    assert sigmas(1.0) < 4 < 10 < sigmas(0.5), (sigmas(1.0), sigmas(0.5))


def test_strengths_that_an_interpolant_has_not():
    """Neither that of the path's own g, nor below 0; and without a bridge none of its own."""
    for options in ({"diffusion": "sbdm"}, {"strength": -1.0}, {"strength": np.inf}):
        with pytest.raises(ValueError, match="--solver=bridge with --diffusion"):
            sample.sampler(Linear(), (2,), ".", "bridge", 3, "uniform", 1e-3, **options)
    with pytest.raises(ValueError, match="expected --diffusion=constant"):
        sample.guided(still(constant=0.1), solver="bridge", steps=3, grid="uniform", score="noise")


def test_evaluations_are_those_made():
    """Of the noise none at strength 0."""
    calls = []

    def field(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return 0.0 * x

    for strength, nfe in ((1.0, 5), (0.0, 3)):
        draw = sample.sampler(Linear(), (2,), ".", "bridge", 3, "uniform", 1e-3, strength=strength)
        found = draw((Interpolant(bridge=1.0), Partial(field), Partial(field)), jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 2)))[1]
        jax.effects_barrier()
        assert len(calls) == nfe and np.all(found == nfe)
        calls.clear()


def test_guidance_of_both():
    """Velocity and noise are extrapolated from those without the label, 10; omega 1 is none."""

    class Net:
        none, interpolant = 10, Interpolant(bridge=1.0)

        def __call__(self, params, x, t, label):
            return params * (x + label)

    run, noise = (SimpleNamespace(network=Net(), params=params) for params in (1.0, 2.0))
    x, label = np.arange(3.0), np.array([1, 2, 3])
    for omega in (1.0, 3.0):
        interpolant, *fields = guidance.Guide(run, omega, score=noise).bridge(label)
        assert interpolant == Net.interpolant
        for params, field in zip((1.0, 2.0), fields):
            np.testing.assert_allclose(field(x, None), params * (x + omega * label + (1 - omega) * 10))


def test_another_score_is_refused():
    """In a line that names what differs, and both values."""
    config = small_config()
    config.coupling.bridge = 1.0
    config.model.num_classes = 10
    config.objective.update(kind="velocity", label_dropout=0.1)

    def of(**fields):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(fields)
        return SimpleNamespace(config=other, workdir="run")

    guidance.check_score(of(), of(**{"objective.kind": "noise"}), 2.0)
    for fields, words in (
        ({"coupling.name": "ot"}, "config.coupling.name = 'ot': expected that of --workdir, 'independent'"),
        ({"coupling.source.name": "fashion"}, "coupling.source.name = 'fashion'.*, ''"),
        ({"coupling.bridge": 2.0}, "coupling.bridge = 2.0.*, 1.0"),
        ({"data.flip": True}, "data.flip = True.*, False"),
        ({"model.num_classes": 0}, "model.num_classes = 0.*, 10"),
        ({"objective.label_dropout": 0.0}, "label_dropout = 0"),
        ({"objective.kind": "velocity"}, "and kind noise"),
    ):
        with pytest.raises(ValueError, match=words):
            guidance.check_score(of(), of(**{"objective.kind": "noise"} | fields), 2.0)


@pytest.mark.parametrize("options", [{"grid": "few"}, {"threshold": "static"}])
def test_what_a_bridge_has_not(options):
    with pytest.raises(ValueError, match="--{}={}".format(*next(iter(options.items())))):
        sample.sampler(Linear(), (2,), ".", **{"solver": "bridge", "steps": 3, "grid": "uniform", "tolerance": 1e-3} | options)


@pytest.mark.parametrize("options", [{"autoguidance": "x", "guidance": 2.0}, {"classifier": "x"}, {"guidance_interval": ["0", "1"], "guidance": 2.0}])
def test_other_guidance_of_a_bridge(options):
    with pytest.raises(ValueError, match="by --guidance alone"):
        sample.guided(None, solver="bridge", steps=3, grid="uniform", score="noise", **options)
