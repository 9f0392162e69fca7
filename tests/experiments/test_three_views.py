"""The comparison of particles, grid and change of variables of --table=three_views: what it must accept, and what it must refuse."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.tables import three_views
from experiments.tables._three_views import agreement, flow, girsanov, kl, particles
from sde_lib import VP, Denoiser, GaussianMixture, Process, reverse_process

GRID = np.linspace(-5, 5, 200)
NORMAL = np.exp(-0.5 * GRID**2) / np.sqrt(2 * np.pi)


def test_agreement_of_draws_with_their_density():
    """z over 200 samples of 2000 has mean 0 and variance 1: standard errors 0.07 and 0.1 at seed 0; the distance is what is due."""
    rng = np.random.default_rng(0)
    found = [agreement(rng.standard_normal((2000, 1)), NORMAL, [GRID], 40) for _ in range(200)]
    z, distance = np.array([a.z for a in found]), np.array([a.distance for a in found])
    assert abs(z.mean()) < 3 * 0.07 and abs(z.var() - 1) < 3 * 0.1
    assert distance.mean() == pytest.approx(found[0].due, rel=0.03)


@pytest.mark.parametrize("wrong", [lambda x: x + 0.05, lambda x: 1.05 * x, lambda x: x + 0.1 * np.sign(x)])
def test_agreement_refuses_another_density(wrong):
    """Control: 20,000 draws that are shifted, 5 % too wide, or parted."""
    x = np.random.default_rng(0).standard_normal((20_000, 1))
    assert abs(agreement(x, NORMAL, [GRID], 40).z) < 3 < 5 < agreement(wrong(x), NORMAL, [GRID], 40).z


def test_agreement_in_the_plane():
    """Correlated draws against the density of independent ones, whose marginals are the same."""
    rng, square = np.random.default_rng(0), np.outer(NORMAL, NORMAL)
    x = rng.standard_normal((20_000, 2))
    turned = x @ np.array([[1.0, 0.2], [0.0, np.sqrt(1 - 0.04)]])
    assert abs(agreement(x, square, [GRID, GRID], 200, 4).z) < 3 < 5 < agreement(turned, square, [GRID, GRID], 200, 4).z
    with pytest.raises(ValueError, match="blocks of 3 cells do not divide"):
        agreement(x, square, [GRID, GRID], 200, 3)
    x[:2, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 20000 draws are not finite"):
        agreement(x, square, [GRID, GRID], 200, 4)


@pytest.mark.slow
def test_a_wrong_score_is_measured_and_bounded(x64):
    """N(0, 0.25) taken for N(m, 0.25): the score is off by alpha m/S^2 everywhere, so that Girsanov's integral is known without sampling error, and
    so is the density of the flow, whose KL is then far below it."""
    sde, m, std, eps = VP(beta_max=3.0), 0.2, 0.5, 0.01
    gm, off = (GaussianMixture(np.array([[mean]]), np.array([std])) for mean in (0.0, m))
    found = girsanov(off.denoiser(sde), gm.denoiser(sde), jnp.zeros((400, 1, 1)), eps, sde.T, jax.random.key(0))
    t = np.linspace(eps, sde.T, 20_001)
    t = 0.5 * (t[1:] + t[:-1])
    rate = 0.5 * sde.diffusion(t) ** 2 * (sde.alpha(t) * m / (sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2)) ** 2
    bound = rate.mean() * (sde.T - eps)
    assert found == pytest.approx(bound, rel=1e-3)
    points, h = jnp.asarray(GRID[:, None]), [GRID[1] - GRID[0]]
    true = three_views.exact(gm, sde, points, eps)
    there, change = flow(off.denoiser(sde), points, eps, sde.T)
    ode = three_views.exact(gm, sde, there, sde.T) * jnp.exp(change)
    assert float(ode.sum() * h[0]) == pytest.approx(1, abs=1e-6)
    s = lambda t: float(np.sqrt(sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2))
    mean = float(sde.alpha(eps)) * m - s(eps) / s(sde.T) * float(sde.alpha(sde.T)) * m
    assert kl(true, ode, h) == pytest.approx(0.5 * (mean / s(eps)) ** 2, rel=1e-4) and kl(true, ode, h) < bound


def scaled(factor, den, x, t):
    return factor * den.score(x, t)


def test_particles_of_an_inserted_score(x64):
    """Of the exact score and of one that is 1.2 times it: 4000 particles on 300 cells in 200 steps agree with the PDE of the same within 3 standard
    errors. Controls: of the other, and of the noise without its half of the score, they do not."""
    sde, gm, factors = VP(), three_views.mixture(), (1.0, 1.2)
    _, s, first, last = three_views.directions(gm, sde)["reverse"]
    processes = [reverse_process(Denoiser(Partial(scaled, factor, gm.denoiser(sde)), sde, "score")) for factor in factors]
    grids = [three_views.carried(gm, sde, (process, s, first, last), 300, 200) for process in processes]
    (x, *_), start, times = grids[0], three_views.drawn(gm, sde, first, 4000), np.linspace(s, s + first - last, 201)
    z = lambda process, p: agreement(np.asarray(particles(jax.random.key(2), start, times, process)), p, [x], 60).z
    found = np.array([[z(process, p) for *_, p in grids] for process in processes])
    assert np.all(np.abs(np.diag(found)) < 3) and min(found[0, 1], found[1, 0]) > 10, found
    den = Denoiser(Partial(scaled, 1.0, gm.denoiser(sde)), sde, "score")
    assert z(Process(reverse_process(den, 0.0).drift, processes[0].diffusion), grids[0][-1]) > 100


@pytest.mark.slow
def test_every_view_of_a_path(sde, x64):
    """400 cells in 300 steps, 4000 particles, forward and in reverse."""
    for row in three_views.of_a_path(sde, 400, 300, 4000):
        assert row["PDE"] <= 6e-3 and row["mass"] <= 1e-8 and 3.5 <= row["ratio"] <= 4.5 and row["ODE"] <= 1e-6 < row["looser"], row
        assert max(abs(row["z PDE"]), abs(row["z ODE"])) <= 3 and -0.7 <= row["slope"] <= -0.3, row


def test_gates_of_paths():
    """Each by the row that it must refuse."""
    good = three_views.row(PDE=1e-4, ratio=4, before=4, mass=0, ODE=1e-7, looser=1e-4, slope=-0.5, z_PDE=1, z_ODE=-1)
    assert all(three_views.gates_of_paths([good, good]).values())
    wrongs = {"PDE": 1e-3, "mass": np.nan, "before": 3, "ratio": 5, "ODE": 1e-3, "looser": 1e-8, "z PDE": 4, "z ODE": -4, "slope": 0.0}
    for wrong in wrongs.items():
        assert list(three_views.gates_of_paths([good, good | dict([wrong])]).values()).count(False) == 1, wrong


def test_gates_of_learned_scores():
    """Each by what it must refuse: a row of one score in the place of the right one."""

    def gates(**wrong):
        scores = {"exact": (0.04, 0.0, 0.002), "few": (0.30, 0.5, 0.43), "more": (0.28, 0.12, 0.09)}
        rows = {}
        for name, (apart, bound, divergence) in scores.items():
            own = three_views.row(mass=0, z_PDE=0, z_ODE=0 if name == "exact" else 70, KL=divergence, bound=bound, PDE_ODE=apart)
            coarse, fine = (three_views.row(mass=0, PDE_ODE=apart * by if name == "exact" else apart) for by in (4, 0.25))
            rows[name] = [own | wrong.get(name, {}), None, coarse, fine | wrong.get(f"{name}, fine", {})]
        return list(three_views.gates_of_learned(rows).values())

    assert all(gates())
    for wrong in (
        {"few": {"z PDE": 4}},
        {"exact": {"mass": 1e-6}},
        {"few, fine": {"mass": 1e-6}},
        {"exact": {"KL": 0.02}},
        {"exact": {"z ODE": 5}},
        {"exact, fine": {"PDE-ODE": 0.02}},
        {"few, fine": {"PDE-ODE": 0.05}},
        {"few, fine": {"PDE-ODE": 0.2}},
        {"few": {"KL": 0.6}},
        {"more": {"bound": 0.6}},
    ):
        assert gates(**wrong).count(False) == 1, wrong


@pytest.mark.slow
def test_quick_table(tmp_path):
    """It runs, in columns that are the same in all rows, and writes its figures and the animation."""
    rows, _ = three_views.run(tmp_path, True, "")
    assert json.dumps(rows) and all(list(row) == list(three_views.COLUMNS) for row in rows)
    assert {"densities.png", "views.gif", "exact_score.png"} <= {file.name for file in tmp_path.iterdir()}
