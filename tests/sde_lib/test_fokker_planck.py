"""The density on a grid against the exact one of mixtures (flows.md, check 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.tables import three_views
from sde_lib import SDE, VP, Denoiser, GaussianMixture, fokker_planck, reverse_process
from sde_lib.fokker_planck import _run, _theta_step

SLOWER = VP(beta_max=3.0)  # VP itself is all but stationary at 0.9 T
PATHS = [SLOWER, *(c() for c in SDE.__subclasses__() if c is not VP)]


def noisier(factor, sde, t):
    return factor * sde.diffusion(t)


def carried(sde, n, steps, theta=0.5, times_g=1.0):
    """L1 distance to the exact density, error of the mass, and least density, on n cells in so many steps; times_g: of the diffusion."""
    gm = three_views.mixture()
    process, *ends = three_views.directions(gm, sde)["forward"]
    process = process._replace(diffusion=Partial(noisier, times_g, sde))
    x, start, end, p = three_views.carried(gm, sde, (process, *ends), n, steps, theta)
    h = x[1] - x[0]
    return three_views.l1(p, end, [h]), abs(float((p.sum() - start.sum()) * h)), float(p.min())


@pytest.mark.parametrize("sde", [pytest.param(sde, id=type(sde).__name__, marks=[pytest.mark.slow] * (sde is not SLOWER)) for sde in PATHS])
def test_the_density_of_every_path(sde, x64):
    """1201 cells, 1000 steps: L1 <= 6e-4, mass to 1e-8, positive; half the cells and steps have 3.5 to 4.5 times the error (flows.md, check 6)."""
    (coarse, *_), (fine, mass, least) = carried(sde, 601, 500), carried(sde, 1201, 1000)
    assert fine <= 6e-4 and mass <= 1e-8 and least >= 0 and 3.5 <= coarse / fine <= 4.5


def test_a_wrong_diffusion_is_seen(x64):
    """Control: 5 % more noise is off by more than the bound."""
    assert carried(SLOWER, 601, 500, times_g=1.05)[0] > 10 * 6e-4


def test_order_of_implicit_euler(x64):
    """Half the step has half the error; Crank-Nicolson's, the control, is far below it."""
    coarse, fine, middle = (carried(SLOWER, 601, steps, theta)[0] for steps, theta in ((40, 1.0), (80, 1.0), (80, 0.5)))
    assert coarse / fine == pytest.approx(2, abs=0.15) and 20 * middle < fine


@pytest.mark.slow
def test_two_dimensions(x64):
    """Three rotated Gaussians on VP: of second order in space alone, in steps whose own error is small; mass kept."""
    coarse, fine = three_views.plane((61, 121), 120)
    assert fine["PDE"] <= 6e-4 and max(coarse["mass"], fine["mass"]) <= 1e-8 and 3.5 <= fine["ratio"] <= 4.5, fine


@pytest.mark.parametrize("eta, bound", [(1.0, 4e-3), (0.5, 1e-2), (0.0, 0.1)])
def test_reverse_process(eta, bound, x64):
    """Back to the density at 0.01 T with an exact score, whatever its noise (upwind, of first order, without): 300 cells, 200 steps."""
    gm = three_views.mixture()
    _, *ends = three_views.directions(gm, SLOWER)["reverse"]
    x, start, end, p = three_views.carried(gm, SLOWER, (reverse_process(gm.denoiser(SLOWER), eta), *ends), 300, 200)
    assert three_views.l1(p, end, [x[1] - x[0]]) <= bound and abs(float((p - start).sum())) <= 1e-8 and float(p.min()) >= 0


def test_a_network_in_float32_stays_so(x64):
    """Its score is asked for in its own precision, on a grid in float64."""
    asked = []

    def network(scale, x, t):
        asked.append((x.dtype.name, t.dtype.name))
        return scale * x

    den = Denoiser(Partial(network, jnp.float32(-1.0)), VP(), "score")
    x = np.linspace(-5, 5, 50)
    p = fokker_planck(np.exp(-0.5 * x**2), [x], np.linspace(0, 1, 11), *reverse_process(den))
    assert set(asked) == {("float32", "float32")} and p.dtype == jnp.float64
    np.testing.assert_allclose(p, np.exp(-0.5 * x**2), atol=1e-2)


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
    p, still, g = jnp.asarray(np.exp(-(x**2))), lambda rate, x, t: -rate * x, Partial(jnp.sqrt)
    run = lambda rate: fokker_planck(p, [x], np.linspace(0, 1, 4), Partial(still, jnp.float32(rate)), g)
    first, compiled = run(1.0), _run._cache_size()
    assert not np.allclose(first, run(2.0)) and _run._cache_size() == compiled


@pytest.mark.parametrize("dims", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_positive_from_a_sharp_peak(dims, x64):
    """A peak of one cell on VP, in 10 steps: positive, of its mass, and near the exact density in which it ends. Crank-Nicolson alone, the control,
    goes far below 0 in the first."""
    sde, x = VP(), np.linspace(-3, 3, 301 if dims == 1 else 121)
    h = x[1] - x[0]
    gm, points = GaussianMixture(np.full((1, dims), 0.3), np.array([h])), np.stack(np.meshgrid(*[x] * dims, indexing="ij"), -1)
    start, end = (three_views.exact(gm, sde, points, t) for t in (0.0, 0.5))
    p = fokker_planck(start, [x] * dims, np.linspace(0, 0.5, 11), sde=sde)
    assert float(p.min()) >= 0 and float(p.sum()) == pytest.approx(float(start.sum()), rel=1e-8)
    assert three_views.l1(p, end, [h] * dims) <= {1: 1e-2, 2: 0.1}[dims]
    alone = jax.jit(_theta_step, static_argnums=5)(start, 0 * start[..., 1:], 0.5 * sde.diffusion(0.025) ** 2, h, 0.05, 0.5)
    assert float(alone.min()) < -0.01 * float(start.max())


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_positive_without_diffusion(theta, x64):
    """A jump that is carried by drift alone, in steps of 5 cells: positive and of the same mass."""
    x = np.linspace(-3, 3, 121)
    p = (np.abs(x) < 0.5).astype(float)
    found = fokker_planck(p, [x], np.linspace(0, 1, 5), lambda x, t: jnp.ones_like(x), lambda t: 0.0, theta=theta)
    assert float(found.min()) >= 0 and float(found.sum()) == pytest.approx(float(p.sum()), rel=1e-8)


P, X, TIMES = np.ones(5), np.linspace(0, 1, 5), np.linspace(0, 1, 3)
GIVEN = {"p": P, "centres": [X], "times": TIMES, "sde": VP()}
DRIFT, NOISE = {"drift": lambda x, t: -x}, {"diffusion": lambda t: 1.0}
MISTAKES = {
    "nothing": ({"sde": None}, "no process given: expected sde, or drift and diffusion"),
    "drift alone": ({"sde": None, **DRIFT}, "drift given: expected sde, or drift and diffusion"),
    "drift beside sde": (DRIFT, "drift and sde given: expected sde, or drift and diffusion"),
    "diffusion beside sde": (NOISE, "diffusion and sde given: expected sde, or drift and diffusion"),
    "both beside sde": (DRIFT | NOISE, "drift and diffusion and sde given"),
    "theta": ({"theta": 0.6}, "theta = 0.6: expected 0.5"),
    "centres not in a list": ({"centres": X}, "centres as ndarray: expected a list of one array .n. for each axis"),
    "no centres": ({"p": np.float64(1), "centres": []}, "centres as list: expected a list of one array"),
    "numbers as centres": ({"centres": [0.0, 1.0]}, r"centres of shapes \[\(\), \(\)\]: expected a list of one array"),
    "shape": ({"centres": [X, X]}, r"p of shape \(5,\): expected \(5, 5\)"),
    "equal centres": ({"centres": [np.zeros(5)]}, "increasing and evenly apart"),
    "decreasing centres": ({"centres": [X[::-1]]}, "increasing and evenly apart"),
    "uneven centres": ({"centres": [X**2]}, "increasing and evenly apart"),
    "centres that are none": ({"centres": [X * np.nan]}, "increasing and evenly apart"),
    "many centres": ({"p": np.ones(500), "centres": [np.linspace(0, 1, 500) ** 2]}, "centres .* [.]{3} .*: expected three or more"),
    "times of two axes": ({"times": [TIMES, TIMES]}, "expected two or more that increase"),
    "two centres": ({"p": np.ones(2), "centres": [[0.0, 1.0]]}, "three or more along each axis"),
    "decreasing times": ({"times": TIMES[::-1]}, "two or more that increase; a reverse process runs in s"),
    "one time": ({"times": [0.0]}, r"times \[0.\]: expected two or more"),
    "infinite times": ({"times": [0.0, np.inf]}, "times .* inf.: expected two or more"),
    "times before 0": ({"times": TIMES - 0.1}, r"times from -0.1 to 0.9: expected 0 to T = 1 of VP\("),
    "times after T": ({"times": TIMES + 0.1}, r"times from 0.1 to 1.1: expected 0 to T = 1 of VP\("),
    "not a number": ({"p": P * np.nan}, "p from nan to nan: expected a density"),
    "negative": ({"p": P - 2}, "p from -1 to -1: expected a density"),
    "nowhere": ({"p": 0 * P}, "p from 0 to 0: expected a density"),
    "a drift without axes": (
        {"sde": None, "drift": lambda x, t: x[:, 0], **NOISE},
        r"a drift of shape \(4,\) at x of \(4, 1\): expected the shape of x",
    ),
    "a diffusion of x": ({"sde": None, "diffusion": lambda t: np.ones(4), **DRIFT}, r"a diffusion of shape \(4,\): expected a number"),
    "a drift without value": ({"sde": None, "drift": lambda x, t: x / 0, **NOISE}, "not finite at 1: expected drift and diffusion that are finite"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    """In one line, with what was given and what was expected."""
    wrong, words = MISTAKES[name]
    with pytest.raises(ValueError, match=words) as error:
        fokker_planck(**(GIVEN | wrong))
    assert "\n" not in str(error.value)


def test_integers_are_numbers_too():
    """A density of integers, and centres in float32, which are even to its rounding only."""
    x = jnp.linspace(-6, 6, 1201, dtype=jnp.float32)
    p = (np.abs(x) < 1).astype(int)
    run = lambda p: np.asarray(fokker_planck(p, [x], TIMES, sde=VP()))
    np.testing.assert_array_equal(run(p), run(p.astype(np.float32)))


def test_under_jit():
    """A traced density is not looked at."""
    assert np.isfinite(jax.jit(lambda p: fokker_planck(p, [X], TIMES, sde=VP()))(P)).all()
