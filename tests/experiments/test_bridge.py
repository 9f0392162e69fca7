"""Stochastic interpolants and Schroedinger bridges as runs."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import toy
from experiments import network, objectives, runs, sample
from experiments.train import train
from sde_lib import Linear, Trig
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
    given = {"n": 40, "batch": 16, "seed": 0, "grid": "log_snr", "tolerance": 1e-3}
    draw = lambda **more: sample.generate(run, **{**given, **more})
    sde, nfe = draw(solver="bridge", steps=20, score=str(tmp_path / "noise"))
    assert nfe == 39 and np.all(np.isfinite(sde))
    np.testing.assert_array_equal(sde[:8], draw(solver="bridge", steps=20, score=str(tmp_path / "noise"), n=8, batch=8)[0])
    ode, _ = draw(solver="euler", steps=20, grid="uniform")
    still, _ = draw(solver="bridge", steps=20, score=str(tmp_path / "noise"), strength=0.0)
    assert np.abs(still - ode).mean() < 0.1 * np.abs(sde - ode).mean()
    for wrong, said in (
        ({"solver": "bridge", "steps": 20}, "--score=WORKDIR together"),
        ({"solver": "bridge", "steps": 20, "score": str(tmp_path / "velocity")}, "kind noise"),
        ({"solver": "euler_maruyama", "steps": 20}, "coupled"),
    ):
        with pytest.raises(ValueError, match=said):
            draw(**wrong)
    with pytest.raises(ValueError, match="--score"):
        runs.load_run(tmp_path / "noise").denoiser()


def test_gamma():
    with pytest.raises(ValueError, match="bridge = -1"):
        network.from_config(coupled_config(bridge=-1.0), 0)
    assert network.from_config(coupled_config(constant=0.1), 0).interpolant == Interpolant(Linear(), 0.1)
