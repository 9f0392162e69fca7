"""Linear inverse problems whose posterior is known: Gaussians, on which moment matching is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.problems import pairs
from samplers import dps, grids, langevin, log_likelihood, moment_matching, operators, pigdm, replacement, sample, sample_sde, solvers
from sde_lib import SDE, VE, VP, Denoiser, GaussianMixture, Trig

METHODS = {"dps": lambda *a: dps(*a, grids.log_snr(VP(), 8), 0.1), "pigdm": pigdm, "moment": moment_matching}


def gaussian(dim: int) -> GaussianMixture:
    """One with a full covariance."""
    rng = np.random.default_rng(dim)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return GaussianMixture(rng.normal(size=(1, dim)), np.geomspace(0.2, 1.0, dim)[None], eigenvectors=turn[None])


def problem(dim: int, measured: int, noise_std: float):
    """A Gaussian, an operator and its matrix, a measurement [1, m], and the posterior."""
    gm, rng = gaussian(dim), np.random.default_rng(dim + 1)
    a = rng.normal(size=(measured, dim))
    y = a @ rng.normal(size=dim) + noise_std * rng.normal(size=measured)
    return gm, operators.matrix(a), y[None], gm.posterior(a, y, noise_std)


ALL_PATHS = [cls() if cls in (VP, VE, Trig) else pytest.param(cls(), marks=pytest.mark.slow) for cls in SDE.__subclasses__()]


@pytest.mark.parametrize("sde", ALL_PATHS, ids=[cls.__name__ for cls in SDE.__subclasses__()])
def test_data_prediction_of_the_posterior_is_exact(sde, x64):
    """Moment matching on a Gaussian, and PiGDM on an isotropic one: E[x_0 | x_t, y] of the oracle's posterior, noised along every path."""
    isotropic = GaussianMixture(np.array([[0.3, -0.2, 0.5]]), np.array([0.7]), eigenvectors=np.eye(3)[None])
    a, y = np.array([[1.0, 2.0, -1.0], [0.0, 1.0, 1.0]]), np.array([[0.4, -0.8]])
    x, data = jax.random.normal(jax.random.key(0), (5, 3)), jax.jit(Denoiser.data)
    cases = [(gaussian(3), lambda den, n: moment_matching(den, operators.matrix(a), jnp.tile(y, (5, 1)), n))]
    cases.append((isotropic, lambda den, n: pigdm(den, operators.matrix(a), jnp.tile(y, (5, 1)), n, sigma_data=0.7)))
    for gm, method in cases:
        for noise_std in (0.3, 0.0):
            exact = gm.posterior(a, y[0], noise_std).denoiser(sde)
            guided = method(gm.denoiser(sde), noise_std)
            for c in (0.1, 0.5, 0.9, 1.0):
                t = c * sde.T
                last = sde.alpha(t) == 0  # evaluated at the last time at which alpha is 1e-3
                wanted = data(exact, x, jnp.asarray(t))
                np.testing.assert_allclose(data(guided, x, jnp.asarray(t)), wanted, rtol=1e-5, atol=5e-3 if last else 1e-5, err_msg=f"{c}")
    wrong = pigdm(gaussian(3).denoiser(sde), operators.matrix(a), jnp.tile(y, (5, 1)), 0.3, sigma_data=0.7)  # whose covariance is no multiple of I
    t = jnp.asarray(0.5 * sde.T)
    exact = gaussian(3).posterior(a, y[0], 0.3).denoiser(sde)
    assert np.abs(data(wrong, x, t) - data(exact, x, t)).max() > 0.01


@pytest.mark.parametrize(
    "sampler, dim, measured", [("ode", 2, 1), *(pytest.param(sampler, 8, 4, marks=pytest.mark.slow) for sampler in ("ode", "sde"))]
)
def test_samples_have_the_posterior_mean_and_covariance(dim, measured, sampler):
    """4000 samples, seed 0: within 4.5 standard errors, sqrt(C_ii/n) of the mean and sqrt((C_ii C_jj + C_ij^2)/n) of the covariance; not PiGDM's."""
    gm, operator, y, posterior = problem(dim, measured, 0.1)
    sde, n = VP(), 4000
    mean, covariance = posterior.mean, posterior.covariance
    y = jnp.tile(jnp.asarray(y, jnp.float32), (n, 1))
    x_T, times = sde.prior_sample(jax.random.key(0), (n, dim)), grids.log_snr(sde, 60)

    def deviations(den):
        if sampler == "ode":
            x = sample(den, x_T, times, solvers.dpm_solver_pp(order=2))
        else:
            x = sample(den, x_T, grids.log_snr(sde, 300), solvers.ancestral(), jax.random.key(1))
        x = np.asarray(jax.jit(Denoiser.data)(den, x, times[-1]), np.float64)
        c = np.diag(covariance)
        of_mean = np.abs(x.mean(0) - mean) / np.sqrt(c / n)
        return of_mean.max(), (np.abs(np.cov(x.T) - covariance) / np.sqrt((np.outer(c, c) + covariance**2) / n)).max()

    found = deviations(moment_matching(gm.denoiser(sde), operator, y, 0.1))
    assert max(found) < 4.5, found
    found = deviations(pigdm(gm.denoiser(sde), operator, y, 0.1))
    assert max(found) > 10, found


@pytest.mark.slow
def test_every_solver_and_sampler_takes_them():
    """diffrax's reverse SDE too, whose examples are solved one by one: 4 standard errors, sqrt(C_ii/n), of the mean of 500 samples, seed 0."""
    gm, operator, y, posterior = problem(2, 1, 0.1)
    sde, n = Trig(), 500
    den = moment_matching(gm.denoiser(sde), operator, jnp.tile(jnp.asarray(y, jnp.float32), (n, 1)), 0.1)
    x_T, times = sde.prior_sample(jax.random.key(0), (n, 2)), grids.log_snr(sde, 100)
    x = sample_sde(den, x_T, times, jax.random.key(1)).x
    x = np.asarray(den.data(x, times[-1]), np.float64)
    assert np.all(np.abs(x.mean(0) - posterior.mean) < 4 * np.sqrt(np.diag(posterior.covariance) / n))


@pytest.mark.slow
def test_dps_is_algorithm_1(x64):
    """With ancestral steps: x' drawn of the unguided denoiser, less (zeta/|r|) grad |r|^2, and a last step that denoises; the same noise."""
    gm, operator, y, _ = problem(4, 2, 0.0)
    sde, zeta = VP(), 0.3
    den, y = gm.denoiser(sde), jnp.tile(y, (3, 1))
    times, x_T = grids.uniform(sde, 3), sde.prior_sample(jax.random.key(0), (3, 4))
    guided = dps(den, operator, y, times, zeta)
    found = sample(guided, x_T, times, solvers.ancestral(), jax.random.key(1))
    noise = sample(den, x_T, times, solvers.ancestral(), jax.random.key(1), path=True)  # whose moves give the noise
    square = lambda x, t: jnp.sum((y - operator.forward(den.data(x, t))) ** 2)

    @jax.jit
    def gradient(x, t):
        norm = jnp.linalg.norm(y - operator.forward(den.data(x, t)), axis=1, keepdims=True)
        return zeta / norm * jax.grad(square)(x, t)

    x = x_T
    for e, row in enumerate(solvers.ancestral()(sde, times).rows()):
        xi = noise[e + 1] - row.x[0] * noise[e] - row.p[0] * den.data(noise[e], row.t)
        x = row.x[0] * x + row.p[0] * den.data(x, row.t) + xi - gradient(x, row.t)
    np.testing.assert_allclose(found, x, atol=1e-8)
    np.testing.assert_allclose(guided.data(x, times[-1]), den.data(x, times[-1]) - gradient(x, times[-1]), atol=1e-8)


@pytest.mark.parametrize("corrector, mean, variance", [(None, 0.937, 0.315), (langevin(0.16), 1.349, 0.195)])
def test_replacement_has_the_known_moments(corrector, mean, variance):
    """score_sde.md, check 9: of pairs N(0, [[1, .9], [.9, 1]]) one is 1.5; by 1000 steps of VE, 16 examples of 128 pairs, seed 0, within 4 standard
    errors, sqrt(v/n) = 0.012 and 0.0098 of the mean and v sqrt(2/n) = 0.0098 and 0.0061 of the variance. The exact posterior, 1.35 and 0.19, the
    predictor alone misses by 30 standard errors. What is known is exact."""
    n, known = 16 * 128, np.zeros((128, 2), bool)
    known[:, 0] = True
    sde, y = VE(), jnp.full((16, 128), 1.5)
    x_T = sde.prior_sample(jax.random.key(0), (16, 128, 2))
    arguments = (operators.inpainting(known), y, x_T, grids.uniform(sde, 1000), solvers.reverse_diffusion(), corrector, jax.random.key(1))
    x = np.asarray(replacement(pairs(sde), *arguments), np.float64)
    np.testing.assert_allclose(x[..., 0], 1.5, rtol=1e-6)
    assert abs(x[..., 1].mean() - mean) < 4 * np.sqrt(variance / n)
    assert abs(x[..., 1].var() - variance) < 4 * variance * np.sqrt(2 / n)


@pytest.mark.slow
def test_replacement_denoises_what_is_not_measured():
    """Where the grid ends at sigma = 0.3: of what super-resolution does not measure (all but the mean) E[x_0 | x] is returned, without the noise, and
    what it measures is y. Batch-mates do not matter."""
    sde, operator = VP(), operators.super_resolution((2, 2, 1), 2)
    gm = GaussianMixture(np.zeros((1, 4)), np.array([0.1]))
    flat = gm.denoiser(sde)
    den = Denoiser(lambda x, t: flat.data(x.reshape(-1, 4), t).reshape(x.shape), sde, "data")
    y, x_T = jnp.full((50, 1, 1, 1), 0.5), sde.prior_sample(jax.random.key(0), (50, 2, 2, 1))
    times = np.linspace(1.0, float(sde.time(np.log(0.95 / 0.3))), 50)
    draw = lambda y, x_T: replacement(den, operator, y, x_T, times, solvers.ancestral(), langevin(0.16), jax.random.key(1))
    x = draw(y, x_T)
    np.testing.assert_allclose(operator.forward(x), y, atol=1e-6)
    assert float(jnp.std(x - x.mean((1, 2), keepdims=True))) < 0.05  # 0.27 with the noise left in
    np.testing.assert_allclose(draw(y[:3], x_T[:3]), x[:3], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_batch_mates_do_not_matter(method, x64):
    """The first of 1 is the first of 3 with other measurements, one of them far off; one program for all y."""
    gm, operator, y, _ = problem(8, 4, 0.1)
    y = jnp.concatenate([y, 100.0 * y, -y])
    x = jax.random.normal(jax.random.key(0), (3, 8))
    den = gm.denoiser(VP())
    data = jax.jit(Denoiser.data)
    many = data(METHODS[method](den, operator, y), x, 0.5)
    np.testing.assert_allclose(data(METHODS[method](den, operator, y[:1]), x[:1], 0.5), many[:1], rtol=1e-9)
    compiled = data._cache_size()
    data(METHODS[method](den, operator, y + 1.0), x, 0.5)
    assert data._cache_size() == compiled
    assert np.abs(many[0] - many[2]).max() > 1e-3  # y is told


def test_dps_stays_where_it_measures_as_it_should():
    """A residual of 0 is no direction: D, and no NaN."""
    den = Denoiser(lambda x, t: jnp.zeros_like(x), VP(), "data")
    guided = dps(den, operators.matrix(np.ones((1, 2))), jnp.zeros((3, 1)), grids.log_snr(VP(), 20), zeta=0.3)
    np.testing.assert_array_equal(guided.data(jnp.ones((3, 2)), 0.99), 0.0)


def test_mistakes_are_refused():
    den, y = gaussian(2).denoiser(VP()), jnp.zeros((3, 1))
    operator, times = operators.matrix(np.ones((1, 2))), grids.log_snr(VP(), 5)
    for words, fn in (
        ("expected measurements", lambda: pigdm(den, operator, jnp.zeros((3, 2)))),
        ("expected measurements", lambda: replacement(den, operator, jnp.zeros((3, 2)), jnp.zeros((3, 2)), times, None)),
        ("noise_std = -1", lambda: moment_matching(den, operator, y, -1.0)),
        ("noise_std = nan", lambda: pigdm(den, operator, y, np.nan)),
        ("sigma_data = 0", lambda: pigdm(den, operator, y, 0.1, sigma_data=0.0)),
        ("iterations = 0", lambda: moment_matching(den, operator, y, 0.1, iterations=0)),
        (r"\(2, \d+\) for 3 examples: expected a row .*a measurement.* for each", lambda: pigdm(den, operator, y[:2]).data(jnp.zeros((3, 2)), 0.5)),
        ("2 measurements and 3 x_T", lambda: replacement(den, operator, y[:2], jnp.zeros((3, 2)), times, solvers.ancestral())),
        ("zeta = 0", lambda: dps(den, operator, y, times, zeta=0.0)),
        ("of a guided denoiser", lambda: log_likelihood(pigdm(den, operator, y), jnp.zeros((3, 2)))),
        ("times must decrease", lambda: dps(den, operator, y, times[::-1])),
    ):
        with pytest.raises(ValueError, match=words):
            fn()
