"""The latent space of the probability flow, in closed form: interpolation, temperature, and what identifies a latent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from samplers import encode, sample_adaptive, slerp
from sde_lib import VE, VP, Denoiser, GaussianMixture, Linear


def test_slerp_keeps_the_norm(x64):
    """On a great circle at an even pace: the norm of equal ends, the angle in proportion to the weight; linear interpolation, the control, is not."""
    a, b = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    norm = lambda x: jnp.linalg.norm(x.reshape(len(x), -1), axis=1)
    a, b = a / norm(a)[:, None, None], b / norm(b)[:, None, None]
    angle = lambda x, y: jnp.arccos(jnp.clip(jnp.sum(x * y, (1, 2)), -1, 1))
    for weight in (0.0, 0.25, 0.5, 0.9, 1.0):
        x = slerp(a, b, weight)
        np.testing.assert_allclose(norm(x), 1.0, rtol=1e-12)
        np.testing.assert_allclose(angle(a, x), weight * angle(a, b), atol=1e-7)
    assert np.all(norm(0.5 * (a + b)) < 0.95)
    np.testing.assert_array_equal(slerp(a, b, jnp.array([0, 1, 0, 1, 0])), jnp.where(jnp.arange(5)[:, None, None] % 2, b, a))
    np.testing.assert_allclose(slerp(a, 3 * a, 0.25), 1.5 * a, rtol=1e-12)  # one direction: linear
    np.testing.assert_allclose(slerp(a, 2 * b, 0.5)[1], slerp(a[1:2], 2 * b[1:2], 0.5)[0], rtol=1e-12)


def test_variance_between_two_draws_of_the_prior():
    """Of 256 coordinates of 2000 pairs N(0, I), half-way: 1 for slerp within 4 standard errors (sqrt(2/(2000 x 256)) = 0.002; the angle's spread adds
    less than 1/256), 1/2 for linear interpolation. Seed 0."""
    a, b = jax.random.normal(jax.random.key(0), (2, 2000, 256))
    assert np.var(slerp(a, b, 0.5)) == pytest.approx(1.0, abs=0.008 + 1 / 256)
    assert np.var(0.5 * (a + b)) == pytest.approx(0.5, abs=0.004)


@pytest.mark.parametrize("sde", [VP(), VE(), Linear()], ids=str)
def test_temperature_scales_the_deviation_of_a_gaussian(sde, x64):
    """The flow of N(m, s^2) is affine: from tau x_T it ends tau times as far from where the flow from 0 ends, tau sqrt(v(eps)/v(T)) x_T."""
    gm, tau = GaussianMixture(np.array([[0.3, -0.2]]), np.array([0.5])), np.array([[0.0], [0.5], [1.0], [1.3]])
    x_T = sde.prior_sample(jax.random.key(0), (1, 2))
    x = sample_adaptive(gm.denoiser(sde), tau * x_T, 1e-8, 1e-8).x
    spread = lambda t: np.hypot(0.5 * sde.alpha(t), sde.sigma(t))
    np.testing.assert_allclose(x[1:] - x[0], tau[1:] * x_T * spread(sde.eps) / spread(sde.T), rtol=1e-5, atol=1e-6)


def latents(gm, sde, x, kind="v"):
    """Latents of x in standard deviations of the prior, by a denoiser of that kind."""
    den = Denoiser(jax.tree_util.Partial(lambda exact, x, t: exact.predict(kind, x, t), gm.denoiser(sde)), sde, kind)
    return encode(den, sde.alpha(sde.eps) * x, 1e-8, 1e-8).x / sde.sigma(sde.T)


@pytest.mark.slow
def test_latents_are_identified_by_the_data(mixture, x64):
    """Exact models encode alike whatever they predict, and on every path with enough noise: the flow of x/alpha in sigma/alpha is one. A model of
    other data does not."""
    x = mixture.sample(jax.random.key(0), 16)
    want = latents(mixture, VP(), x)
    np.testing.assert_allclose(latents(mixture, VP(), x, "noise"), want, atol=1e-5)
    np.testing.assert_allclose(latents(mixture, Linear(), x), want, atol=0.05)  # alpha(T)/sigma(T) of VP is 0.007
    wrong = latents(GaussianMixture(mixture.means[::-1], mixture.stds, mixture.weights, mixture.eigenvectors), VP(), x)
    assert np.abs(wrong - want).mean() > 0.1


@pytest.mark.slow
def test_latents_are_gaussian(mixture):
    """Of 1000 draws of a mixture: each coordinate N(0, 1) by Kolmogorov-Smirnov at the level 1e-4 (0.07; seed 0). Data taken for latents, the
    control, are not."""
    x = mixture.sample(jax.random.key(0), 1000)
    z = encode(mixture.denoiser(VP()), x).x / VP().sigma(1.0)
    assert max(stats.kstest(np.asarray(c), "norm").statistic for c in z.T) <= 0.07
    assert max(stats.kstest(np.asarray(c / c.std()), "norm").statistic for c in x.T) > 0.07
