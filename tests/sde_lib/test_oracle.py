import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sde_lib import VP, GaussianMixture, Linear


def test_density_is_that_of_scipy(x64, mixture):
    x = np.random.default_rng(0).normal(size=(7, 2))
    for t, alpha, sigma in ((None, 1.0, 0.0), (0.4, VP().alpha(0.4), VP().sigma(0.4))):
        want, total = 0.0, float(mixture.weights.sum())
        for m, s, w, v in zip(*(np.asarray(a, np.float64) for a in (mixture.means, mixture.stds, mixture.weights / total, mixture.eigenvectors))):
            covariance = v @ np.diag((alpha * s) ** 2 + sigma**2) @ v.T
            want = want + w * stats.multivariate_normal(alpha * m, covariance).pdf(x)
        got = mixture.log_prob(x) if t is None else mixture.marginal_log_prob(VP(), x, t)
        np.testing.assert_allclose(got, np.log(want), rtol=1e-6)


@pytest.mark.few_paths
def test_denoiser_is_exact(sde, x64, mixture):
    """score = grad log p_t, and data = Tweedie's formula (x + sigma^2 score)/alpha, in float64 to 1e-9."""
    gm, den = mixture, mixture.denoiser(sde)
    for c in (0.02, 0.3, 0.95):
        t = jnp.asarray(c * sde.T)
        x = sde.perturb(jax.random.key(1), gm.sample(jax.random.key(0), 8), t)[0]
        score = jax.grad(lambda x, t=t: gm.marginal_log_prob(sde, x, t).sum())(x)
        np.testing.assert_allclose(den.score(x, t), score, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(den.data(x, t), (x + sde.sigma(t) ** 2 * score) / sde.alpha(t), rtol=1e-7, atol=1e-8)


def test_velocity_in_the_other_direction_of_time(x64):
    """Flow-matching papers put data at t = 1: x = (1 - tau) z + tau x_1, u = E[x_1 - z | x]. For N(m, s^2) in closed form; ours at t = 1 - tau
    is its negative, to 1e-10 (flows.md, check 12)."""
    m, s, x = 0.3, 0.5, np.linspace(-2, 2, 9)[:, None]
    den = GaussianMixture(np.array([[m]]), np.array([s])).denoiser(Linear())
    for tau in (0.1, 0.5, 0.9):
        u = m + (tau * s**2 - (1 - tau)) / (tau**2 * s**2 + (1 - tau) ** 2) * (x - tau * m)
        np.testing.assert_allclose(-den.velocity(x, 1 - tau), u, atol=1e-10)
        assert np.abs(den.velocity(x, 1 - tau) - u).max() > 0.1 and (tau == 0.5 or np.abs(-den.velocity(x, tau) - u).max() > 0.1)  # controls


def test_samples(mixture):
    """Mean and covariance within 4 standard errors (n = 20,000, seed 3); draws belong to their index."""
    n = 20_000
    x = np.asarray(mixture.sample(jax.random.key(3), n), np.float64)
    w, m = np.asarray(mixture.weights / mixture.weights.sum()), np.asarray(mixture.means)
    v, s = np.asarray(mixture.eigenvectors), np.asarray(mixture.stds)
    mean = w @ m
    second = sum(w[k] * (v[k] @ np.diag(s[k] ** 2) @ v[k].T + np.outer(m[k], m[k])) for k in range(3))
    assert np.all(np.abs(x.mean(0) - mean) < 4 * x.std(0) / np.sqrt(n))
    products = x[:, :, None] * x[:, None, :]
    assert np.all(np.abs(products.mean(0) - second) < 4 * products.std(0) / np.sqrt(n))
    np.testing.assert_array_equal(mixture.sample(jax.random.key(3), 5), x[:5].astype(np.float32))


@pytest.mark.slow
def test_gradients_pass_through_the_pytree():
    """d log p / d weights against finite differences; integer means are real numbers."""
    gm = GaussianMixture([[-1, 0], [1, 0]], [0.5, 0.7], [1, 3])
    x = jnp.array([[0.3, 0.1]])
    grad = jax.grad(lambda gm: gm.log_prob(x).sum())(gm).weights
    value = lambda w0: float(GaussianMixture([[-1, 0], [1, 0]], [0.5, 0.7], [w0, 3.0]).log_prob(x)[0])
    np.testing.assert_allclose(grad[0], (value(1.01) - value(0.99)) / 0.02, rtol=1e-2)
    np.testing.assert_allclose(gm.denoiser(VP()).data(np.array([[1, 2]]), 0.5), gm.denoiser(VP()).data(jnp.array([[1.0, 2.0]]), 0.5))


def test_defaults_and_shapes():
    gm = GaussianMixture(np.zeros((2, 3)), [0.1, 0.2])
    np.testing.assert_allclose(gm.weights, [0.5, 0.5])
    assert gm.stds.shape == (2, 3)
    leaves, tree = jax.tree.flatten(gm)
    assert jax.tree.unflatten(tree, leaves).denoiser(Linear()).data(jnp.zeros((1, 3)), 0.5).shape == (1, 3)
    for bad in (lambda: GaussianMixture(np.zeros(3), [0.1]), lambda: GaussianMixture(np.zeros((2, 3)), [0.1] * 3)):
        with pytest.raises(ValueError, match="expected"):
            bad()


def test_posterior_is_bayes_rule(x64, mixture):
    """log p(x_0 | y) = log p(x_0) + log N(y; A x_0, noise_std^2) - log p(y): the same constant at every x_0. Its moments are those of a grid."""
    a, y, noise_std = np.array([[1.0, 0.4]]), np.array([0.2]), 0.3
    posterior = mixture.posterior(a, y, noise_std)
    axis = np.linspace(-3, 3, 241)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    joint = mixture.log_prob(x) + stats.norm(0, noise_std).logpdf((y - x @ a.T)[:, 0])
    some = np.asarray(joint) > -30
    constant = np.asarray(joint - posterior.log_prob(x))[some]
    assert np.ptp(constant) < 1e-4, np.ptp(constant)  # stds and means are float64; the rounding is the log-density's, far from the mode
    p = np.exp(np.asarray(joint - joint.max()))
    p /= p.sum()
    np.testing.assert_allclose(posterior.mean, p @ x, atol=1e-6)
    np.testing.assert_allclose(posterior.covariance, (x - p @ x).T @ ((x - p @ x) * p[:, None]), atol=1e-6)
    with pytest.raises(ValueError, match="singular"):
        mixture.posterior(np.ones((2, 2)), np.zeros(2), 0.0)
