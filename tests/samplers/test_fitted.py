"""What is fitted to a model: DPM-Solver-v3, AMED, GITS; against their unfitted bases on an exact mixture, float32, fixed seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from affine import slope_of_error

from experiments import arrays, fit
from samplers import amed, gits, grids, log_likelihood, sample, solvers, threshold
from samplers.solvers import v3
from sde_lib import EDM, VP, Denoiser, GaussianMixture, Linear, Trig

RNG = np.random.default_rng(0)
TURNS = np.stack([np.linalg.qr(RNG.normal(size=(8, 8)))[0] for _ in range(5)])
MIXTURE = GaussianMixture(0.7 * RNG.normal(size=(5, 8)), RNG.uniform(0.1, 0.4, (5, 8)), eigenvectors=TURNS)  # the setting of solvers.md


@pytest.fixture(scope="module", params=[pytest.param(EDM(), marks=pytest.mark.slow), VP()], ids=["EDM", "VP"])
def problem(request):
    """A path, its exact denoiser, 256 starts, and the root mean square distance to their converged ends."""
    sde = request.param
    den, x_T = MIXTURE.denoiser(sde), sde.prior_sample(jax.random.key(0), (256, 8))
    exact = sample(den, x_T, grids.log_snr(sde, 400), solvers.rk4("log_snr"))
    return sde, den, x_T, lambda x: float(jnp.sqrt(jnp.mean(jnp.sum((x - exact) ** 2, -1))))


@pytest.mark.slow
def test_v3_beats_its_degenerate_self(problem):
    """By 25 % at 5 evaluations, 15 % at 8, 5 % at 20, not worse at 10, with statistics of 120 values of log-SNR x 1024 examples."""
    sde, den, x_T, rmse = problem
    log_snr = sde.log_snr(grids.log_snr(sde, 119))
    statistics = v3.estimate(den, MIXTURE.sample(jax.random.key(5), 1024), jax.random.key(6), log_snr)
    degenerate = v3.Statistics.constant((log_snr[0], log_snr[-1]), (8,))
    for n, gain in ((5, 0.75), (8, 0.85), (10, 1.0), (20, 0.95)):
        errors = [rmse(sample(den, x_T, grids.log_snr(sde, n), v3.dpm_solver_v3(s))) for s in (statistics, degenerate)]
        assert errors[0] < gain * errors[1], (n, errors)


def test_v3_without_statistics_is_dpm_solver_pp(x64):
    """Without its corrector, l = 1 and s = 0: DPM-Solver++ with consistent differences; l = 0 and s = -1: DPM-Solver, Adams-Bashforth in lambda."""
    sde, x = VP(), np.random.default_rng(1).normal(size=(4, 8))
    den, times = MIXTURE.denoiser(sde), grids.log_snr(sde, 9)
    ends = (sde.log_snr(times[0]), sde.log_snr(times[-1]))
    for constants, other in (
        ((1.0, 0.0), solvers.dpm_solver_pp(3, solver_type="taylor", consistent=True, lower_order_final=False)),
        ((0.0, -1.0), solvers.adams_bashforth(3, "log_snr")),
    ):
        plain = v3.dpm_solver_v3(v3.Statistics.constant(ends, (8,), *constants), corrector="none")
        np.testing.assert_allclose(sample(den, x, times, plain), sample(den, x, times, other), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order, predictor, corrector, want",
    [(3, "polynomial", "none", 3), (3, "polynomial", "same", 3), (3, "polynomial", "pseudo", 2), (3, "pseudo", "none", 2), (2, "pseudo", "none", 2)],
)
def test_order_of_v3(order, predictor, corrector, want):
    """With l = 0 and s = -1 on three Gaussians, as `test_order_of_convergence`: the pseudo-order of three evaluations is 2."""
    statistics = v3.Statistics.constant((-7.0, 3.2), (), 0.0, -1.0)
    solver = v3.dpm_solver_v3(statistics, order, corrector, predictor=predictor)
    slope, error = slope_of_error(EDM(sigma_max=1e3), solver, 1e3, 0.05)
    assert slope == pytest.approx(want, abs=0.1), error


def test_pseudo_order_is_the_authors(x64):
    """By hand, on uneven log-SNR, l = 1 and s = b = 0 (f = -D): the divided differences D[i] of the last three times i! are the derivatives."""
    sde, times = VP(), np.array([0.9, 0.7, 0.3, 0.1])
    den, x = MIXTURE.denoiser(sde), np.random.default_rng(1).normal(size=(4, 8))
    solver = v3.dpm_solver_v3(v3.Statistics.constant((-9.0, 9.0), (8,)), 3, "none", predictor="pseudo")
    path = sample(den, x, times, solver, path=True)
    lam, alpha, sigma = sde.log_snr(times), sde.alpha(times), sde.sigma(times)
    d2, d1, d0 = (den.data(path[i], times[i]) for i in range(3))
    first, older = (d0 - d1) / (lam[2] - lam[1]), (d1 - d2) / (lam[1] - lam[0])
    derivatives = (d0, first, 2 * (first - older) / (lam[2] - lam[0]))
    h = lam[3] - lam[2]
    u, w = np.polynomial.legendre.leggauss(20)
    u, w = h * (u + 1) / 2, h * w / 2
    integrals = [np.sum(w * np.exp(u - h) * u**n / max(n, 1)) for n in range(3)]
    want = sigma[3] / sigma[2] * path[2] + alpha[3] * sum(c * d for c, d in zip(integrals, derivatives))
    np.testing.assert_allclose(path[3], want, rtol=1e-10)
    exact = v3.dpm_solver_v3(v3.Statistics.constant((-9.0, 9.0), (8,)), 3, corrector="none")
    assert np.abs(exact(sde, times).p[2] - solver(sde, times).p[2]).max() > 1e-3  # control: the polynomial is another


def test_v3_statistics_of_a_gaussian(x64):
    """On N(0, s^2 I), eps = sigma x/(alpha^2 s^2 + sigma^2): l = sigma^2/(alpha^2 s^2 + sigma^2) and f = 0, so that v3 is exact in one step."""
    gm, sde = GaussianMixture(np.zeros((1, 3)), np.array([0.5])), VP()
    log_snr = sde.log_snr(grids.log_snr(sde, 200))
    statistics = v3.estimate(gm.denoiser(sde), gm.sample(jax.random.key(0), 16), jax.random.key(1), log_snr)
    want = 1 / (1 + 0.25 * np.exp(2 * log_snr))
    np.testing.assert_allclose(statistics.l, np.broadcast_to(want[:, None], (201, 3)), rtol=1e-8)
    x, times = np.ones((1, 3)), np.array([0.6, 0.2])
    spread = lambda t: np.hypot(0.5 * sde.alpha(t), sde.sigma(t))
    np.testing.assert_allclose(sample(gm.denoiser(sde), x, times, v3.dpm_solver_v3(statistics)), spread(0.2) / spread(0.6) * x, rtol=1e-3)


@pytest.mark.parametrize("base", ["midpoint", "ipndm"])
def test_amed_without_a_predictor_is_its_base(base, x64):
    """r = 1/2, c = a = 1: DPM-Solver-2, and iPNDM on the grid with the geometric middles."""
    sde, x = VP(), np.random.default_rng(1).normal(size=(4, 8))
    den, times = MIXTURE.denoiser(sde), grids.karras(VP(), 5)
    middles = sde.time(0.5 * (sde.log_snr(times[:-1]) + sde.log_snr(times[1:])))
    finer = np.append(np.stack([times[:-1], middles], 1), times[-1])
    want = sample(den, x, times, solvers.dpm_solver(2)) if base == "midpoint" else sample(den, x, finer, solvers.ipndm())
    np.testing.assert_allclose(amed.amed(den, x, times, None, base), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sde", [VP(), Trig()], ids=["VP", "Trig"])
def test_the_plain_plugin_is_ipndm_on_every_grid(sde, x64):
    """With the middles of a grid, from alpha = 0 too (DDIM's step, then an odd number of others)."""
    x, den = np.random.default_rng(1).normal(size=(4, 8)), MIXTURE.denoiser(sde)
    times, middles = amed.every_second(grids.cosine, sde, 3, "ipndm")
    grid = grids.cosine(sde, amed.evaluations(sde, times))
    np.testing.assert_allclose(np.sort(np.concatenate([times, middles]))[::-1], grid)
    want = sample(den, x, grid, solvers.ipndm())
    np.testing.assert_allclose(amed.amed(den, x, times, None, "ipndm", middles), want, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("base, steps", [("midpoint", 3), ("ipndm", 3)])
def test_amed_beats_its_base(problem, base, steps):
    """At 6 evaluations, after 150 iterations: AMED-Solver has less than a third of DPM-Solver-2's error, the plugin at most 0.9 of iPNDM's."""
    sde, den, x_T, rmse = problem
    times, pool = grids.karras(sde, steps), sde.prior_sample(jax.random.key(1), (512, 8))
    params, losses = fit.fit_predictor(den, pool, times, base, iterations=150)
    errors = [rmse(amed.amed(den, x_T, times, p, base)) for p in (fit.predictor(params), None)]
    assert errors[0] < {"midpoint": 0.33, "ipndm": 0.9}[base] * errors[1], errors
    assert np.mean(losses[-5:]) < losses[0]


def test_gits_beats_the_grid_that_it_chose_from(problem):
    """DDIM and iPNDM on five fitted steps have at most 0.8 and 0.9 of their error on Karras' grid; ends are exact, times decrease."""
    sde, den, x_T, rmse = problem
    times = gits(den, sde.prior_sample(jax.random.key(1), (256, 8)), 5)
    assert times.shape == (6,) and times[0] == sde.T and times[-1] == sde.sampling_eps and np.all(np.diff(times) < 0)
    for solver, gain in ((solvers.ddim(), 0.8), (solvers.ipndm(), 0.9)):
        assert rmse(sample(den, x_T, times, solver)) < gain * rmse(sample(den, x_T, grids.karras(sde, 5), solver))


@pytest.mark.slow
def test_fitted_solvers_start_where_alpha_is_zero():
    """On the linear path: finite, and not far from the plain ones."""
    sde = Linear()
    den, x_T = MIXTURE.denoiser(sde), sde.prior_sample(jax.random.key(0), (64, 8))
    exact = sample(den, x_T, grids.log_snr(sde, 400), solvers.rk4("log_snr"))
    times = gits(den, x_T, 8)
    log_snr = np.linspace(-6, 6, 20)
    statistics = v3.estimate(den, MIXTURE.sample(jax.random.key(5), 256), jax.random.key(6), log_snr)
    params, _ = fit.fit_predictor(den, x_T, times, "ipndm", iterations=2)
    for x in (sample(den, x_T, times, v3.dpm_solver_v3(statistics)), amed.amed(den, x_T, times, fit.predictor(params), "ipndm")):
        assert float(jnp.sqrt(jnp.mean((x - exact) ** 2))) < 0.3


@pytest.mark.slow
def test_fits_survive_their_files(tmp_path):
    statistics = v3.Statistics(np.arange(3.0), *(np.random.default_rng(i).normal(size=(3, 2)) for i in range(3)))
    np.savez(tmp_path / "a.npz", **vars(statistics))
    loaded = fit.statistics(tmp_path / "a.npz")
    for name in ("log_snr", "l", "s", "b"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(statistics, name))
    params, _ = fit.fit_predictor(MIXTURE.denoiser(VP()), jnp.ones((4, 8)), grids.karras(VP(), 2), "midpoint", iterations=1)
    arrays.save(tmp_path / "b.npz", params, times=grids.karras(VP(), 2), middles=[])
    again, times, middles = fit.load_predictor(tmp_path / "b.npz", (8,))
    assert middles is None
    np.testing.assert_array_equal(times, grids.karras(VP(), 2))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    with pytest.raises(ValueError, match="another shape"):
        fit.load_predictor(tmp_path / "b.npz", (3,))
    for content in (b"", (tmp_path / "b.npz").read_bytes()[:200], b"garbage"):
        (tmp_path / "c.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            fit.statistics(tmp_path / "c.npz")
    with pytest.raises(FileNotFoundError, match="python -m experiments.fit --workdir=.* --solver=amed --steps=7"):
        fit.fitted(tmp_path, "amed", 7)


def test_threshold():
    """Static: clipped to +-bound. Dynamic: each example by its own quantile, scaled back to bound, and only where that is above it."""
    data = jnp.array([[0.5, -0.2, 0.1, 0.3], [4.0, -2.0, 1.0, 0.5]])
    den = Denoiser(lambda x, t: data, VP(), "data")
    np.testing.assert_allclose(threshold(den).data(data, 0.5), jnp.clip(data, -1, 1))
    dynamic = threshold(den, quantile=0.5).data(data, 0.5)
    np.testing.assert_allclose(dynamic[0], data[0])
    np.testing.assert_allclose(dynamic[1], np.clip(data[1], -1.5, 1.5) / 1.5, rtol=1e-6)
    x = sample(threshold(MIXTURE.denoiser(VP()), 0.1), jnp.ones((2, 8)), grids.log_snr(VP(), 8), solvers.dpm_solver_pp())
    assert float(jnp.abs(x).max()) < 0.2
    conditional = Denoiser(lambda x, t, c: c, VP(), "data", cond=data)
    np.testing.assert_allclose(jax.jit(lambda d, x: d.noise(x, 0.5))(threshold(conditional), data), threshold(den).noise(data, 0.5), rtol=1e-5)
    with pytest.raises(ValueError, match="or one with a threshold"):
        log_likelihood(threshold(den), data)
    with pytest.raises(ValueError, match="expected a bound above 0"):
        threshold(den, bound=-1.0)


@pytest.mark.slow
def test_fits_of_conditional_models():
    """Each example keeps its own condition in the batches of a fit: a model whose mean is its label is followed to the label."""
    label = jnp.arange(16) % 4
    shifted = lambda x, t, c: MIXTURE.denoiser(VP()).data(x - VP().alpha(t)[:, None] * c[:, None], t) + c[:, None]
    den = Denoiser(shifted, VP(), "data", cond=label)
    x_T = VP().prior_sample(jax.random.key(0), (16, 8))
    params, losses = fit.fit_predictor(den, x_T, grids.karras(VP(), 3), "midpoint", iterations=30, batch=8)
    assert losses[-1] < 0.5 * losses[0]
    before = amed.follow._cache_size()
    for _ in range(2):  # another predictor of the same kind compiles nothing
        x = amed.amed(den, x_T, grids.karras(VP(), 3), fit.predictor(params))
    assert amed.follow._cache_size() == before + 1 and x.shape == x_T.shape


def test_mistakes_are_named():
    den, x = MIXTURE.denoiser(VP()), jnp.ones((2, 8))
    for bad, words in (
        (lambda: amed.amed(den, x, grids.karras(VP(), 3), None, "heun"), "expected midpoint"),
        (lambda: amed.amed(den, x, grids.karras(VP(), 3), None, "ipndm", np.array([0.9, 0.5])), "one time within each of the 3 steps"),
        (lambda: amed.amed(den, x, grids.with_zero(grids.karras(VP(), 3)), None), "ends above sigma = 0"),
        (lambda: gits(den, x, 0), "expected 1 to 60"),
        (lambda: v3.dpm_solver_v3(v3.Statistics.constant((-5.0, 5.0), (8,)), order=4), "expected 1 or 2 or 3"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()
