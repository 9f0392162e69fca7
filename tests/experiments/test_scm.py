"""sCM against the paper's formulas and closed forms of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import config_of, save_random

from configs import default
from experiments import consistency, network, runs, sample, scm, train
from sde_lib import EDM, VE, VP, FlowMap, GaussianMixture, Linear, SubVP, Trig

SIGMA = 0.5
OPTIONS = ConfigDict({"step": "data", "constant": 0.1, "warmup": 0.0})


def batch(n=16, d=3, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return *(jax.random.normal(key, (n, d)) for key in keys[:2]), jax.random.uniform(keys[2], (n,), minval=0.05, maxval=1.5)


def bent(x, t, s):
    """Any function."""
    return jnp.sin(2 * x) * jnp.cos(t)[:, None] + x[:, ::-1] * t[:, None] ** 2


@pytest.mark.parametrize("rise", [0.0, 0.3, 1.0])
def test_the_tangent_is_the_papers(x64, rise):
    """On TrigFlow g = -cos^2 t (sigma_d F - dx/dt) - r (cos t sin t x + sigma_d jvp), F of x/sigma_d (2410.11081, algorithm 1); at r = 1 it is
    cos t df/dt. Kind "edm", EDM's, has the other sign: f = cos t x + sin t sigma_d F."""
    sde, (x, v, t) = Trig(sigma_data=SIGMA), batch()
    fm = FlowMap(lambda x, t, s: -bent(x / SIGMA, t, s), sde, "edm", SIGMA, final=True)
    c, s = (fn(t)[:, None] for fn in (jnp.cos, jnp.sin))
    F = lambda x, t: bent(x, t, None)
    value, jvp = jax.jvp(F, (x / SIGMA, t), (c * s * v / SIGMA, (c * s)[:, 0]))
    expected = -(c**2) * (SIGMA * value - v) - rise * (c * s * x + SIGMA * jvp)
    point, g = scm.tangent(fm, x, t, v, rise)
    np.testing.assert_allclose(point, -value, rtol=1e-12)
    np.testing.assert_allclose(-g, expected, rtol=1e-10, atol=1e-12)
    if rise == 1:
        f = lambda x, t: jnp.cos(t)[:, None] * x - jnp.sin(t)[:, None] * SIGMA * F(x / SIGMA, t)
        np.testing.assert_allclose(-g, c * jax.jvp(f, (x, t), (v, jnp.ones_like(t)))[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", [Trig(), Linear(), VP(), SubVP(), VE(), EDM()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("kind", ["edm", "v"])
def test_no_tangent_at_the_exact_function(x64, path, kind):
    """Of Gaussian data with the exact velocity g is 0 at the consistency function, and not with another velocity; of kind "edm", beside it, it leads
    back to it."""
    gm = GaussianMixture([[0.3, -0.2, 0.1]], [0.8])
    exact, (x, v, t) = gm.flow_map(path), batch()
    t = t / 1.5 * path.T * 0.99
    x = path.sigma(t)[:, None] * x + path.alpha(t)[:, None] * v
    of = lambda off: FlowMap(lambda x, t, s: exact.towards(jnp.zeros_like(t)).predict(kind, x, t) + off, path, kind, SIGMA, final=True)
    velocity = gm.denoiser(path).velocity(x, t)
    g = lambda fm, velocity: scm.tangent(fm, x, t, velocity, 1.0)[1]
    assert float(jnp.abs(g(of(0.0), velocity)).max()) < 1e-7 * float(jnp.abs(g(of(0.0), 0 * velocity)).max())
    beside = np.sum(g(of(0.1), velocity), 1)
    assert np.abs(beside).max() > 1e-4 and (kind == "v" or np.all(beside <= 0))


def test_the_limit_of_the_discrete_loss(x64):
    """The gradient of the discrete loss of a vanishing gap, over the gap, is that of the tangent: the error is of first order in the gap."""
    sde, (x0, noise, t) = Trig(), batch()
    loss_at = lambda params: FlowMap(lambda x, t, s: params * bent(x, t, s), sde, "edm", 1.0, final=True)
    x_t = sde.alpha(t)[:, None] * x0 + sde.sigma(t)[:, None] * noise
    v = sde.alpha_dot(t)[:, None] * x0 + sde.sigma_dot(t)[:, None] * noise
    _, g = scm.tangent(loss_at(1.0), x_t, t, v, 1.0)
    d_point = lambda p: jax.jvp(lambda p: loss_at(p)(x_t, t, 0 * t), (p,), (1.0,))[1]
    limit = -float(jnp.mean(jnp.sum(d_point(1.0) * g / jnp.cos(t)[:, None], 1)))  # of |f_t - sg f_u|^2/2 over t - u: f . df/dt

    def discrete(gap):
        u = t - gap
        x_u = sde.alpha(u)[:, None] * x0 + sde.sigma(u)[:, None] * noise
        target = loss_at(1.0)(x_u, u, 0 * t)
        options = default.get_config().objective.consistency
        value = lambda p: jnp.mean(3 * consistency.distance(options, loss_at(p)(x_t, t, 0 * t), target)) / 2
        return float(jax.grad(value)(1.0) / gap)

    errors = [abs(discrete(gap) - limit) for gap in (2e-3, 1e-3)]
    assert 1.8 < errors[0] / errors[1] < 2.2 and errors[1] < 0.05 * abs(limit)


@pytest.mark.parametrize("path", [Trig(), EDM(), VP()], ids=lambda sde: type(sde).__name__)
def test_finite_at_the_ends(path):
    x0, noise, _ = batch()
    t = jnp.linspace(path.eps, path.T, 16)
    fm = FlowMap(bent, path, "edm", 1.0, final=True)
    assert np.all(np.isfinite(scm.loss(fm, None, 0 * t, x0, noise, t, 1.0, OPTIONS)))


@pytest.mark.parametrize("step", ["data", pytest.param("teacher", marks=pytest.mark.slow)])
def test_a_run(tmp_path, step):
    """Trains with its learned weight, resumes, and samples by jumps."""
    config = config_of()
    config.objective.update(loss="scm", kind="v")
    config.objective.scm.step = step
    if step == "teacher":
        save_random(config_of(), tmp_path / "teacher")
        config.teacher.workdir, config.training.init = str(tmp_path / "teacher"), "teacher"
    config.training.update(steps=2, checkpoint_every=2)
    config.optim.warmup = 0
    state = train.train(config, tmp_path / "run")
    assert float(jnp.abs(state.params["uncertainty"]["Dense_0"]["kernel"]).max()) > 0
    values, nfe = sample.generate(runs.load_run(tmp_path / "run"), 4, 4, 0, solver="jumps", steps=2, grid="uniform", tolerance=1e-3)
    assert values.shape == (4, 8, 8, 1) and nfe == 2


def test_mistakes():
    config = config_of(second_time=True)
    config.objective.loss = "scm"
    with pytest.raises(ValueError, match="second_time = False"):
        network.from_config(config, 10)
    config.model.second_time = False
    config.objective.kind = "data"
    with pytest.raises(ValueError, match="kind = 'data'"):
        network.from_config(config, 10)
    config.objective.scm.step = "heun"
    with pytest.raises(ValueError, match="step = 'heun'"):
        network.from_config(config, 10)
