"""The density on a grid against the exact one of mixtures (flows.md, check 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import EDM, NCSN, SDE, VE, VP, GaussianMixture
from sde_lib.fokker_planck import _run, fokker_planck

MIXTURE = GaussianMixture(np.array([[-0.8], [0.5]]), np.array([0.3, 0.2]), np.array([1.0, 2.0]))
ENDS = {EDM: 0.02, VE: 0.6, NCSN: 0.6}  # of T: later their noise is wider than the grid


def carried(sde, n, steps, times_g=1.0):
    """L1 distance to the exact density, error of the mass, and least density, on n cells in so many steps; times_g: of the diffusion."""
    gm, end = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), MIXTURE), ENDS.get(type(sde), 0.9) * sde.T
    wide = 6 * max(1.0, float(sde.sigma(end)))
    x = np.linspace(-wide, wide, n)
    exact = lambda t: jnp.exp(gm.marginal_log_prob(sde, x[:, None], t))
    first, h = exact(0.01 * sde.T), x[1] - x[0]
    p = fokker_planck(first, [x], np.linspace(0.01 * sde.T, end, steps + 1), sde.drift, lambda t: times_g * sde.diffusion(t))
    return float(jnp.abs(p - exact(end)).sum() * h), abs(float((p.sum() - first.sum()) * h)), float(p.min())


@pytest.mark.parametrize("sde", [pytest.param(c(), id=c.__name__, marks=[pytest.mark.slow] * (c is not VP)) for c in SDE.__subclasses__()])
def test_the_density_of_every_path(sde, x64):
    """1201 cells, 1000 steps: L1 <= 6e-4, mass to 1e-8, positive; half the cells and steps have 3.5 to 4.5 times the error (flows.md, check 6)."""
    (coarse, *_), (fine, mass, least) = carried(sde, 601, 500), carried(sde, 1201, 1000)
    assert fine <= 6e-4 and mass <= 1e-8 and least >= 0 and 3.5 <= coarse / fine <= 4.5


def test_a_wrong_diffusion_is_seen(x64):
    """Control: 5 % more noise is off by more than the bound."""
    assert carried(VP(beta_max=3.0), 601, 500, times_g=1.05)[0] > 10 * 6e-4


@pytest.mark.slow
def test_two_dimensions(x64, mixture):
    """Three rotated Gaussians on VP: of second order in space and time together, mass and sign kept."""
    sde, gm, errors = VP(beta_max=3.0), jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), mixture), []
    for n, steps in ((61, 30), (121, 60)):
        x = np.linspace(-4.5, 4.5, n)
        points = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
        exact = lambda t, points=points, n=n: jnp.exp(gm.marginal_log_prob(sde, points, t)).reshape(n, n)
        p = fokker_planck(exact(0.2), [x, x], np.linspace(0.2, 1.0, steps + 1), sde=sde)
        assert abs(float((p - exact(0.2)).sum()) * (x[1] - x[0]) ** 2) <= 1e-8 and float(p.min()) >= 0
        errors.append(float(jnp.abs(p - exact(1.0)).sum()) * (x[1] - x[0]) ** 2)
    assert errors[1] <= 6e-4 and 3.5 <= errors[0] / errors[1] <= 4.5, errors


def test_any_drift(x64):
    """dx = (J - 1) x dt + sqrt(2) dw, J a quarter turn: N(m, I) has its mean turned and shrunk, which no drift of one coordinate alone would do."""
    x, end = np.linspace(-6, 6, 121), 1.0
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1)
    normal = lambda m: jnp.asarray(np.exp(-0.5 * ((grid - m) ** 2).sum(-1)) / (2 * np.pi))
    drift = lambda x, t: jnp.stack([-x[:, 1] - x[:, 0], x[:, 0] - x[:, 1]], 1)
    p = fokker_planck(normal([1.5, 0.0]), [x, x], np.linspace(0, end, 101), drift, lambda t: np.sqrt(2.0))
    mean = 1.5 * np.exp(-end) * np.array([np.cos(end), np.sin(end)])
    assert float(jnp.abs(p - normal(mean)).sum() * 0.1**2) <= 2e-3  # 1.3e-3, of second order in the 0.1 between cells


def test_another_drift_of_one_kind_is_not_compiled_anew():
    """The parameters of a Partial are an argument: the same code, and another result."""
    x = np.linspace(-3, 3, 31)
    p, still, g = jnp.asarray(np.exp(-(x**2))), lambda rate, x, t: -rate * x, jax.tree_util.Partial(jnp.sqrt)
    run = lambda rate: fokker_planck(p, [x], np.linspace(0, 1, 4), jax.tree_util.Partial(still, jnp.float32(rate)), g)
    first, compiled = run(1.0), _run._cache_size()
    assert not np.allclose(first, run(2.0)) and _run._cache_size() == compiled


def test_positive_without_diffusion(x64):
    """A jump that is carried by drift alone, in steps of 5 cells: implicit Euler stays positive and keeps the mass; Crank-Nicolson, the control, does
    not stay positive."""
    x = np.linspace(-3, 3, 121)
    p = jnp.asarray((np.abs(x) < 0.5).astype(float))
    run = lambda theta: fokker_planck(p, [x], np.linspace(0, 1, 5), lambda x, t: jnp.ones_like(x), lambda t: 0.0, theta=theta)
    assert float(run(1.0).min()) >= 0 and float(run(1.0).sum()) == pytest.approx(float(p.sum()), rel=1e-8)
    assert float(run(0.5).min()) < -1e-3


def test_mistakes_are_named():
    p, x, times = np.ones(5), np.linspace(0, 1, 5), np.linspace(0, 1, 3)
    for bad, words in (
        (lambda: fokker_planck(p, [x], times), "expected sde, or drift and diffusion"),
        (lambda: fokker_planck(p, [x], times[::-1], sde=VP()), "times that increase; a reverse process runs in s"),
        (lambda: fokker_planck(p, [x, x], times, sde=VP()), r"shape .5,.: expected .5, 5."),
        (lambda: fokker_planck(p, [x**2], times, sde=VP()), "evenly apart"),
        (lambda: fokker_planck(p, [x], times, sde=VP(), theta=0.6), "theta = 0.6"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()
