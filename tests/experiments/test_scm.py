"""Continuous-time consistency against the paper's formula, closed forms and the discrete loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config_of, save_random

from configs import default
from experiments import consistency, data, network, runs, sample, scm, state, toy, train
from samplers import jumps, sample_adaptive
from sde_lib import EDM, OU, VP, FlowMap, GaussianMixture, Linear, SubVP, Trig
from sde_lib.numerics import expand

STD = 0.5  # sigma_d


def options(**given):
    chosen = default.get_config().objective.scm
    chosen.update(given)
    return chosen


def arbitrary(sde, kind="edm"):
    """A function of x/S and log-SNR alone, hence the same on all paths."""

    def fn(x, t):
        scale = jnp.sqrt((sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2)
        angle = jnp.arctan2(sde.sigma(t), STD * sde.alpha(t))
        return jnp.sin(2 * x / expand(scale, x) + x[:, ::-1] / expand(scale, x)) * jnp.cos(angle)[:, None] + jnp.exp(-angle)[:, None]

    return FlowMap(lambda x, t, s: fn(x, t), sde, kind, STD, final=True)


def points(sde, low=0.05, high=0.95, n=16):
    """x, t and the examples' own v."""
    t = jnp.linspace(low, high, n) * sde.T
    x0, noise = jax.random.normal(jax.random.key(0), (2, n, 2))
    at = lambda a, b: expand(a, x0) * x0 + expand(b, x0) * noise
    return at(sde.alpha(t), sde.sigma(t)), t, at(-sde.sigma(t), sde.alpha(t)), x0, noise


@pytest.mark.parametrize("r", [0.3, 1.0])
def test_tangent_is_the_papers(x64, r):
    """On TrigFlow, with F = -E, algorithm 1 as it is printed, the derivative by differences."""
    sde = Trig(sigma_data=STD)
    fm, (x, t, _, x0, noise) = arbitrary(sde), points(sde)
    F = lambda y, t: -fm.raw(STD * y, t, 0.0)
    col = lambda a: a[:, None]
    z = STD * noise
    dx = col(jnp.cos(t)) * z - col(jnp.sin(t)) * x0
    h, pace = 1e-5, jnp.cos(t) * jnp.sin(t)
    dF = (F((x + h * col(pace) * dx) / STD, t + h * pace) - F((x - h * col(pace) * dx) / STD, t - h * pace)) / (2 * h)
    cos, sin = col(jnp.cos(t)), col(jnp.sin(t))
    g = -(cos**2) * (STD * F(x / STD, t) - dx) - r * (cos * sin * x + STD * dF)
    point, found = scm.tangent(fm, *points(sde)[:3], r)
    np.testing.assert_allclose(-found, g, atol=1e-8)
    np.testing.assert_allclose(-point, F(x / STD, t), atol=1e-12)
    norm = jnp.linalg.norm(g, axis=1, keepdims=True)
    value = scm.loss(fm, None, jnp.full(16, 0.7), x0, noise, t, r, options(warmup=1.0))
    np.testing.assert_allclose(value, np.exp(0.7) * jnp.mean((g / (norm + 0.1)) ** 2, 1) - 0.7, atol=1e-8)


@pytest.mark.few_paths
def test_tangent_is_the_derivative_of_the_jump(sde, x64):
    """At r = 1, of any F: -cos(theta) d/dtheta of the jump along the example's own line, in the scale of y; not so at r = 0.9."""
    fm, (x, t, v, x0, noise) = arbitrary(sde), points(sde)
    jump = lambda t: fm(expand(sde.alpha(t), x0) * x0 + expand(sde.sigma(t), x0) * noise, t, 0.0)
    theta = lambda t: jnp.arctan2(sde.sigma(t), STD * sde.alpha(t))
    scale = jnp.sqrt((sde.alpha(jnp.zeros(())) * STD) ** 2 + sde.sigma(jnp.zeros(())) ** 2) / STD
    one = jnp.ones_like(t)
    slope = jax.jvp(jump, (t,), (one,))[1] / jax.jvp(theta, (t,), (one,))[1][:, None] / scale
    expected = -jnp.cos(theta(t))[:, None] * slope
    np.testing.assert_allclose(scm.tangent(fm, x, t, v)[1], expected, atol=1e-8)
    assert jnp.abs(scm.tangent(fm, x, t, v, 0.9)[1] - expected).max() > 1e-3


def test_paths_and_predictions_do_not_matter(x64):
    """The same function of x/S and log-SNR has the same g, of any r, on all paths that begin at the data; and the same flow map of another kind."""
    found = []
    for sde in (Trig(sigma_data=STD), Linear(), VP(), SubVP(), EDM(), OU()):
        t = sde.time(jnp.linspace(4.0, -4.0, 9))
        x0, noise = jax.random.normal(jax.random.key(0), (2, 9, 2))
        at = lambda a, b: expand(a, x0) * x0 + expand(b, x0) * noise  # noqa: B023
        x, v = at(sde.alpha(t), sde.sigma(t)), at(-sde.sigma(t), sde.alpha(t))
        fm = arbitrary(sde)
        other = FlowMap(lambda x, t, s, fm=fm: fm.towards(s).velocity(x, t), sde, "velocity", STD, final=True)
        found += [scm.tangent(f, x, t, v, 0.4)[1] for f in (fm, other)]
    for g in found[1:]:
        np.testing.assert_allclose(g, found[0], atol=1e-8)


@pytest.mark.few_paths
def test_no_tangent_at_the_consistency_function(sde, x64):
    """Of Gaussian data, with the exact velocity: g = 0 on every path. Controls: another function, and the example's own velocity."""
    gm = GaussianMixture([[0.3, -0.8]], [[0.5, 0.2]])
    x, t, v, *_ = points(sde)
    exact, flow = gm.flow_map(sde), gm.denoiser(sde).v(x, t)
    fm = FlowMap(exact.fn, sde, exact.kind, STD, final=True)
    bent = FlowMap(lambda x, t, s: exact.raw(x, t, s) + 0.1 * x, sde, exact.kind, STD, final=True)
    size = lambda fm, v: jnp.abs(scm.tangent(fm, x, t, v)[1]).max()
    assert size(fm, flow) < 1e-9 and size(bent, flow) > 1e-2 and size(fm, v) > 1e-2


SOME = [Trig(sigma_data=STD), *(pytest.param(sde, marks=pytest.mark.slow) for sde in (VP(), EDM()))]


@pytest.mark.parametrize("path", SOME, ids=lambda sde: type(sde).__name__)
def test_limit_of_the_discrete_loss(x64, path):
    """The gradient of `consistency.loss`, of step data, divided by the gap in theta and weighted by 1/(sigma_d tan(theta)), in a shift of E of each
    example: it comes to that of |E - sg(E + g)|^2/d, with an error that halves with the gap."""
    fm, (_, t, _, x0, noise), given = arbitrary(path), points(path, 0.1, 0.7), default.get_config().objective.consistency
    given.update(times="ect", stages=64, shrink=2.0)
    theta = lambda t: jnp.arctan2(path.sigma(t), STD * path.alpha(t))
    shifted = lambda a: FlowMap(lambda x, t, s: fm.raw(x, t, s) + a, path, "edm", STD, final=True)

    @jax.jit
    def slope(stage):
        loss = lambda a: consistency.loss(shifted(a), fm, None, x0, noise, t, (t, t), (stage + 0.5) / 64, given)
        gap = theta(t) - theta(consistency.earlier(path, given, t, (stage + 0.5) / 64))
        return jax.jvp(loss, (0.0,), (1.0,))[1] / gap / (STD * jnp.tan(theta(t)))

    x, t, v = points(path, 0.1, 0.7)[:3]
    limit = -2 * jnp.mean(scm.tangent(fm, x, t, v)[1], 1)
    first, second, third = (np.abs(slope(stage) - limit).max() for stage in (11.0, 12.0, 13.0))
    assert third < 0.01 * np.abs(limit).max() and 1.9 < first / second < 2.1 and 1.9 < second / third < 2.1


@pytest.mark.few_paths
def test_finite_at_both_ends(sde):
    """In float32, from the smallest time that is trained on to the largest."""
    last = sde.T if sde.alpha(sde.T) > 0 else sde.T - sde.eps
    t = jnp.array([sde.eps, 2 * sde.eps, 0.5 * sde.T, last], jnp.float32)
    x0, noise = jax.random.normal(jax.random.key(0), (2, 4, 2))
    at = lambda a, b: expand(a, x0) * x0 + expand(b, x0) * noise
    x, v = at(sde.alpha(t), sde.sigma(t)), at(-sde.sigma(t), sde.alpha(t))
    fm, o = arbitrary(sde), options()
    value, grad = jax.value_and_grad(lambda w: scm.loss(fm, None, w, x0, noise, t, 1.0, o).sum())(jnp.zeros(4))
    point, g = scm.tangent(fm, x, t, v)
    assert np.isfinite(value) and np.all(np.isfinite(grad)) and np.abs(g).max() < 100 and np.all(np.isfinite(point))


def test_gradients(x64):
    """Through E alone: d loss/dE = -2 e^w/d g/(|g| + c), and none through g; w is at its best where e^-w is the mean error."""
    sde = Trig(sigma_data=STD)
    x, t, v, x0, noise = points(sde)
    fm, o, w = arbitrary(sde), options(), jnp.full(16, 0.3)
    moved = lambda a: FlowMap(lambda x, t, s: fm.raw(x, t, s) * (1 + a), sde, "edm", STD, final=True)
    got = jax.jacfwd(lambda a: scm.loss(moved(a), None, w, x0, noise, t, 1.0, o))(0.0)
    point, g = scm.tangent(fm, x, t, v)
    unit = g / (jnp.linalg.norm(g, axis=1, keepdims=True) + 0.1)
    np.testing.assert_allclose(got, -np.exp(0.3) * jnp.sum(point * unit, 1), rtol=1e-10)
    best = -jnp.log(jnp.mean(unit**2, 1))
    np.testing.assert_allclose(jax.grad(lambda w: scm.loss(fm, None, w, x0, noise, t, 1.0, o).sum())(best), 0.0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["data", "teacher"])
def test_a_run(tmp_path, step):
    """Trains, with a weight that learns, resumes, samples in one and two jumps, and has no denoiser."""
    config = config_of()
    config.objective.update(loss="scm", kind="edm", adaptive=True)
    config.objective.scm.step = step
    if step == "teacher":
        save_random(config_of(), tmp_path / "teacher")
        config.teacher.workdir, config.training.init = str(tmp_path / "teacher"), "teacher"
    trained = train.train(config, tmp_path / "run")
    assert jnp.abs(trained.params["uncertainty"]["Dense_0"]["kernel"]).max() > 0
    run = runs.load_run(tmp_path / "run")
    for steps in (1, 2):
        values, nfe = sample.generate(run, 4, 4, 0, solver="jumps", steps=steps, grid="uniform", tolerance=1e-3)
        assert values.shape == (4, 8, 8, 1) and nfe == steps
    with pytest.raises(ValueError, match="consistency function"):
        run.denoiser()


def test_mistakes():
    config = config_of()
    config.objective.loss = "scm"
    for change, second, said in (
        ({"step": "heun"}, False, "step = 'heun': expected data or teacher"),
        ({"constant": 0.0}, False, "constant = 0.0"),
        ({"warmup": 2.0}, False, "warmup = 2.0"),
        ({}, True, "second_time = False"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.objective.scm.update(change)
        wrong.model.second_time = second
        with pytest.raises(ValueError, match=said):
            network.from_config(wrong, 10)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["data", "teacher"])
def test_one_jump_on_a_ring(step):
    """few_step.md's instance: eight Gaussians on a ring of radius .702, std .06, after 5000 steps of 512, of data or the exact teacher. One jump is
    within .12 (root mean square) of the exact flow of the same noise; one DDIM step of the exact velocity, the control, is not within .4."""
    from configs import consistency as configs

    config = configs.continuous(configs.get_config("sct_8gaussians"), STD)
    config.objective.scm.step = step
    found, control = ring_error(config, step == "teacher")
    assert found <= 0.12 and control > 0.4


def ring_error(config, taught):
    """Of one jump, and of one step of DDIM with the exact velocity."""
    ring = GaussianMixture(0.702 * toy.ring(1.0), np.full(8, 0.06))
    net = network.from_config(config, 0)
    dataset = data.Dataset("ring", {}, {}, 0.0, 1.0, 0, 0)
    step = state.make_step(config, net, dataset, axis=None)
    frozen = state.Frozen(teacher=ring.denoiser(net.sde) if taught else None)

    def advance(current, i):
        x = ring.sample(jax.random.fold_in(jax.random.key(5), i), 512)
        position = (i * 512 + jnp.arange(512)).astype(jnp.uint32)
        return step(current, {"value": x, "position": position}, frozen)[0], None

    trained = jax.jit(lambda s: jax.lax.scan(advance, s, jnp.arange(config.training.steps))[0])(state.init(config, net, (2,)))
    x_T = net.sde.prior_sample(jax.random.key(6), (4000, 2))
    exact = sample_adaptive(ring.denoiser(net.sde), x_T, 1e-6, 1e-6).x
    off = lambda x: float(jnp.sqrt(jnp.mean(jnp.sum((x - exact) ** 2, 1))))
    fm = net.flow_map(trained.ema)
    found = off(jumps(fm, x_T, [net.sde.T, 0.0])), off(ring.denoiser(net.sde).data(x_T, net.sde.T))
    print(f"RMSE {found[0]:.3f}, control {found[1]:.3f}")
    return found
