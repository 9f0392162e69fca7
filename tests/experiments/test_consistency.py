"""Consistency losses against closed forms: of Gaussian data every flow is linear."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from small import config_of, save_random

from configs import default
from experiments import consistency, network, objectives, runs, sample, train
from samplers import grids
from sde_lib import EDM, VE, VP, Cosine, FlowMap, GaussianMixture, Linear, SubVP, Trig

STD = 0.8


def options(**given):
    chosen = default.get_config().objective.consistency
    chosen.update(given)
    return chosen


def quadrature(n: int):
    """x_0, noise, t [4 n]: of each interval of a grid of n the four points by which second moments of (x_0, noise) are exact; t as shares."""
    x0, noise, share = np.meshgrid([-STD, STD], [-1.0, 1.0], (np.arange(n) + 0.5) / n, indexing="ij")
    return (jnp.asarray(a.ravel()) for a in (x0, noise, share))


def linear(sde, slopes, grid: str):
    """The consistency function whose jump from the i-th time of a grid to eps is times slopes[i]."""

    def fn(x, t, s):
        index = jnp.round(consistency.grid_share(sde, grid, t) * (len(slopes) - 1)).astype(int)
        a, b = (sde.sigma(s) / sde.sigma(t), sde.alpha(s) - sde.alpha(t) * sde.sigma(s) / sde.sigma(t))
        return ((slopes[index] - a) / jnp.where(b == 0, 1.0, b))[:, None] * x

    return FlowMap(fn, sde, "data", final=True)


def gradient(sde, given, n: int, slopes, teacher=None):
    """Of the mean loss in the slopes, theta^- being the same."""
    x0, noise, share = quadrature(n)
    t = consistency.grid_time(sde, given.grid, share)

    def loss(slopes, frozen):
        student, target = linear(sde, slopes, given.grid), linear(sde, frozen, given.grid)
        return consistency.loss(student, target, teacher, x0[:, None], noise[:, None], t, (0 * t, 0 * t), 0.0, given).mean()

    return jax.grad(loss)(slopes, slopes)[1:]  # no jump begins at eps


@pytest.mark.parametrize("n, ratio", [(11, 0.767), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((19, 0.863), (41, 0.936), (151, 0.982)))])
def test_fixed_point_of_training(x64, n, ratio):
    """CT's is the product of (s^2 + t_i t_{i+1})/(s^2 + t_{i+1}^2), not the true map: the gradient is 0 at the first, not at the second."""
    sde, given = EDM(), options(count=n)
    t = np.sort(grids.karras(sde, n - 1))
    product = np.cumprod(np.append(1.0, (STD**2 + t[:-1] * t[1:]) / (STD**2 + t[1:] ** 2)))
    true = np.sqrt((STD**2 + t[0] ** 2) / (STD**2 + t**2))
    assert product[-1] / true[-1] == pytest.approx(ratio, abs=6e-4)
    at = lambda slopes: jnp.abs(gradient(sde, given, n - 1, jnp.asarray(slopes))).max()
    assert at(product) < 1e-12 and at(true) > 1e-6


@pytest.mark.parametrize("n, ratio", [(11, 1.149), (19, 1.042), (41, 1.008)])
def test_fixed_point_of_distillation(x64, n, ratio):
    """CD's is the product of the slopes of Heun's steps of the exact teacher."""
    sde, given = EDM(), options(count=n, step="heun")
    teacher, t = GaussianMixture([[0.0]], [STD]).denoiser(sde), np.sort(grids.karras(sde, n - 1))
    x, index = jnp.ones((n - 1, 1)), jnp.arange(n - 1)
    heun = consistency.carried(teacher, "heun", t, x, index, jnp.ones(n - 1), 1)
    product = np.cumprod(np.append(1.0, heun))
    assert product[-1] / np.sqrt((STD**2 + t[0] ** 2) / (STD**2 + t[-1] ** 2)) == pytest.approx(ratio, abs=6e-4)
    at = lambda slopes: jnp.abs(gradient(sde, given, n - 1, jnp.asarray(slopes), teacher)).max()
    assert at(product) < 1e-12 and at(product**1.01) > 1e-6


CASES = {
    "CD": dict(step="dpm_solver_pp"),
    "LCM": dict(step="ddim", grid="uniform", metric="huber"),
    "TCD": dict(step="ddim", to="random", grid="uniform"),
    "CTM": dict(step="heun", to="random", chain=5, through=True),
    "PCM": dict(step="ddim", to="phase", phases=4, grid="uniform"),
}


FAST = (VP,)
EVERY = [pytest.param(cls(), id=cls.__name__, marks=[pytest.mark.slow] * (cls not in FAST)) for cls in (EDM, VE, VP, SubVP, Linear, Cosine, Trig)]


@pytest.mark.parametrize("path", EVERY)
@pytest.mark.parametrize("name", CASES)
def test_the_exact_map_is_the_fixed_point(x64, name, path):
    """With an exact teacher of many steps the loss vanishes at the exact flow map, whose target is where it lands itself; beside it, it does not."""
    gm = GaussianMixture([[0.3, -0.2]], [STD])
    given = options(**CASES[name], count=2001)
    keys = jax.random.split(jax.random.key(0), 4)
    x0, noise = gm.sample(keys[0], 64), jax.random.normal(keys[1], (64, 2))
    draws = tuple(jax.random.uniform(key, (64,)) for key in jax.random.split(keys[2]))
    t = consistency.grid_time(path, given.grid, jax.random.uniform(keys[3], (64,), minval=0.05, maxval=0.99))
    exact = gm.flow_map(path)
    bent = FlowMap(lambda x, t, s: exact.raw(x, t, s) * (1 + 0.05 * (t - s)[:, None]), path, exact.kind)
    loss = lambda fm: np.asarray(consistency.loss(fm, fm, gm.denoiser(path), x0, noise, t, draws, 0.0, given))
    other = np.asarray(consistency.loss(bent, exact, gm.denoiser(path), x0, noise, t, draws, 0.0, given))
    assert loss(exact).mean() < 1e-9 and other.mean() > 1e5 * loss(exact).mean()


def test_places(x64):
    """s is eps, a point of the grid up to u, or the lower edge of a phase; u is the neighbour of t, or as many points before it as the chain has."""
    sde, seen = VP(), []
    record = FlowMap(lambda x, t, s: seen.append((t, s)) or x, sde, "v")
    n, t = 9, jnp.linspace(0.01, 0.999, 200)
    x, teacher = jnp.ones((200, 1)), GaussianMixture([[0.0]], [STD]).denoiser(sde)
    draws, grid = (jnp.tile(jnp.linspace(0, 0.999, 40), 5), jnp.tile(jnp.linspace(0, 0.999, 50), 4)), np.sort(grids.uniform(sde, n - 1))
    found = {}
    for to, chain in (("data", 1), ("random", 1), ("phase", 1), ("random", 8)):
        seen.clear()
        given = options(count=n, grid="uniform", step="ddim", to=to, chain=chain, phases=4)
        consistency.loss(record, record, teacher, x, x, t, draws, 0.0, given)
        (late, s), (u, also) = seen[0], seen[1]
        place = lambda a: np.round(np.interp(a, grid, np.arange(n)), 6)
        i, j, k = (place(a) for a in (late, u, s))
        assert np.all(s == also) and np.all(k <= j) and np.all(j < i) and np.all(grid[i.astype(int) - 1] <= t + 1e-9) and np.all(t <= late)
        found[to, chain] = i, j, k
    i, j, k = found["phase", 1]
    assert np.all(j == i - 1) and np.all(k == 2 * (j // 2))  # four phases of two intervals
    assert np.all(found["data", 1][2] == 0) and set(found["random", 1][2]) == set(range(8))
    i, j, k = found["random", 8]
    assert set(i - j) == set(range(1, 9))


def test_schedules(x64):
    """N(k) and mu(k) are those of the papers, iCT's probabilities those of its table 1; ECT's gaps shrink, down to the data."""
    total, ct = 400, options(times="ct", start=2, end=150, target=0.9)
    for k in (0, 1, 37, 200, 399):
        n = max(1, int(np.ceil(np.sqrt(k / total * (151**2 - 4) + 4) - 1)))
        assert consistency.points(ct, k / total) == n + 1
        objective = default.get_config().objective
        objective.consistency = ct
        assert consistency.decay(objective, k / total) == pytest.approx(np.exp(2 * np.log(0.9) / n))
    ict = options(times="ict", start=10, end=1280)
    each = total // (np.log2(128) + 1)
    assert [int(consistency.points(ict, k / total)) for k in (0, 49, 50, 399)] == [min(10 * 2 ** int(k // each), 1280) + 1 for k in (0, 49, 50, 399)]

    sde, n, objective = EDM(), 11, default.get_config().objective
    objective.time.update(name="log_normal", mean=-1.1, std=2.0)
    u = (jnp.arange(100_000) + 0.5) / 100_000
    index = jnp.floor(consistency.grid_share(sde, "karras", objectives.landing(sde, objective.time, u)) * (n - 1))
    sigma = np.sort(grids.karras(sde, n - 1))
    p = np.diff(erf((np.log(sigma) + 1.1) / (np.sqrt(2) * 2.0)))
    np.testing.assert_allclose(np.bincount(np.asarray(index, int), minlength=n - 1) / 100_000, p / p.sum(), atol=3e-5)

    ect, t = options(times="ect", shrink=2.0, stages=8), jnp.array([1e-2, 1.0, 10.0])
    np.testing.assert_allclose(consistency.earlier(sde, ect, t, 0.0), jnp.maximum(0, t * (1 - (1 + 8 / (1 + jnp.exp(t))) / 2)), rtol=1e-12)
    late = consistency.earlier(sde, ect, t, 1.0)
    np.testing.assert_allclose(late, t * (1 - (1 + 8 / (1 + jnp.exp(t))) / 256), rtol=1e-9)


def test_the_data_are_ects_target(x64):
    """Where u has come to the data the target is x_0 itself; the loss is |x - x_0|/t there, or, of weight edm, times 1/t^2 + 1/sigma_d^2."""
    sde, given = EDM(), options(times="ect", metric="huber", constant=0.0, weight="gap")
    x0, noise, t = jnp.ones((3, 4)), jnp.full((3, 4), 0.5), jnp.array([0.1, 0.5, 1.0])
    fm = FlowMap(lambda x, t, s: 0.7 * x, sde, "data", final=True)
    got = consistency.loss(fm, fm, None, x0, noise, t, (t, t), 0.0, given)
    np.testing.assert_allclose(got, 2 * np.abs(0.7 * (1 + 0.5 * t) - 1) / t, rtol=1e-9)
    given.weight, half = "edm", replace(fm, sigma_data=0.5)
    got = consistency.loss(half, half, None, x0, noise, t, (t, t), 0.0, given)
    np.testing.assert_allclose(got, 2 * np.abs(0.7 * (1 + 0.5 * t) - 1) * (t**-2.0 + 4), rtol=1e-9)


RUNS = {
    "CT": (False, dict(times="ct", start=2, end=150, target=0.9)),
    "ECT": (False, dict(times="ect", metric="huber", weight="gap")),
    "CD": (False, dict(step="heun", target=0.5)),
    "CTM": (True, dict(step="heun", to="random", chain=3, through=True, target=0.9, regression=1.0)),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "CTM")) for n in RUNS])
def test_a_run(tmp_path, name):
    """Trains, resumes with its theta^- bit-identically, and samples by jumps; a consistency function has no likelihood."""
    second, given = RUNS[name]
    taught = given.get("step", "data") != "data"
    config = config_of(second_time=second)
    config.objective.update(loss="consistency", kind="v")
    config.objective.consistency.update(given)
    if taught:
        save_random(config_of(), tmp_path / "teacher")
        config.teacher.workdir, config.training.init = str(tmp_path / "teacher"), "teacher"
    config.training.update(steps=4, checkpoint_every=2)
    whole = train.train(config, tmp_path / "whole")
    config.training.keep = 0
    train.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    again = train.train(config, tmp_path / "run")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again)):
        np.testing.assert_array_equal(a, b)
    assert (whole.target is not None) == (given.get("target", 0) > 0)
    run = runs.load_run(tmp_path / "run")
    for steps in (1, 2):
        values, nfe = sample.generate(run, 4, 4, 0, solver="jumps", steps=steps, grid="uniform", tolerance=1e-3)
        assert values.shape == (4, 8, 8, 1) and nfe == steps
    if not second:
        with pytest.raises(ValueError, match="consistency function"):
            run.denoiser()


def test_mistakes():
    config = config_of()
    config.objective.loss = "consistency"
    for change, said in (
        ({"times": "often"}, "times = 'often'"),
        ({"to": "random"}, "second_time"),
        ({"step": "heun", "times": "ict"}, "expected fixed"),
        ({"chain": 2}, "chain = 2"),
        ({"target": 1.0}, "target = 1.0"),
        ({"times": "ct"}, "target = 0 of times 'ct'"),
        ({"times": "ict", "start": 0}, "start = 0"),
        ({"times": "ict", "start": 20, "end": 10}, "end = 10"),
        ({"times": "ect", "stages": 0}, "stages = 0"),
        ({"times": "ect", "shrink": 1.0}, "shrink = 1.0"),
        ({"metric": "huber", "constant": -1.0}, "constant = -1.0"),
        ({"regression": 1.0}, "second_time = True"),
        ({"through": True}, "through = True"),
        ({"phases": 0}, "phases = 0"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.objective.consistency.update(change)
        with pytest.raises(ValueError, match=said):
            network.from_config(wrong, 10)
