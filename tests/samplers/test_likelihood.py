"""The log-likelihood against closed forms (flows.md, checks 3, 4 and 12; score_sde.md, check 6; tables_and_likelihood.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import log_likelihood, sample_adaptive
from sde_lib import VP, Denoiser, GaussianMixture, Linear

RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1)
GM = GaussianMixture(0.8 * RING, np.full(8, 0.15))


def test_mixture_to_the_stated_accuracy():
    """256 points, Tsit5 at 1e-5: mean error <= 1e-4, largest <= 1e-3 nats; at 1e-7 in float64 the largest <= 5e-6."""
    x = GM.sample(jax.random.key(0), 256)
    error = log_likelihood(GM.denoiser(Linear()), x).log_prob - GM.log_prob(x)
    assert abs(float(error.mean())) <= 1e-4 and float(jnp.abs(error).max()) <= 1e-3
    with jax.enable_x64(True):
        gm = GaussianMixture(0.8 * RING, np.full(8, 0.15))
        x = gm.sample(jax.random.key(0), 64)
        error = log_likelihood(gm.denoiser(Linear()), x, rtol=1e-7, atol=1e-7).log_prob - gm.marginal_log_prob(Linear(), x, Linear().eps)
        assert float(jnp.abs(error).max()) <= 5e-6


def test_every_path(sde, x64):
    """log p is that of the marginal at eps up to the prior's mismatch, which is known: compare p_eps with the prior's own density at T."""
    gm = GaussianMixture(0.8 * RING, np.full(8, 0.15))
    x = gm.sample(jax.random.key(0), 16)
    result = log_likelihood(gm.denoiser(sde), x, rtol=1e-7, atol=1e-7)
    mismatch = gm.marginal_log_prob(sde, result.latent, sde.T) - sde.prior_log_prob(result.latent)
    np.testing.assert_allclose(result.log_prob + mismatch, gm.marginal_log_prob(sde, x, sde.eps), atol=2e-4)
    assert np.all(result.stderr == 0) and np.all(result.success)


def test_density_integrates_to_one():
    """The integral of exp(log p) over a 121 x 121 grid on [-2, 2]^2 is 1 +- 1e-4 (the trapezoid is exact to rounding for Gaussians this wide)."""
    side = np.linspace(-2, 2, 121)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    log_prob = log_likelihood(GM.denoiser(Linear()), points).log_prob
    assert np.exp(np.asarray(log_prob, np.float64)).sum() * (side[1] - side[0]) ** 2 == pytest.approx(1.0, abs=1e-4)


def test_hutchinson_agrees_and_knows_its_error():
    """512 probes, 8 points, seed 0: within 4 standard errors of the exact value; stderr falls as 1/sqrt(probes)."""
    x = GM.sample(jax.random.key(0), 8)
    den = GM.denoiser(Linear())
    exact = log_likelihood(den, x).log_prob
    many = log_likelihood(den, x, "hutchinson", jax.random.key(1), probes=512, chunk=128)
    assert np.all(np.abs(many.log_prob - exact) <= 4 * many.stderr + 1e-4)
    few = log_likelihood(den, x, "hutchinson", jax.random.key(2), probes=32)
    np.testing.assert_allclose(np.mean(few.stderr / many.stderr), 4.0, rtol=0.25)
    one = log_likelihood(den, x, "hutchinson", jax.random.key(1), probes=1)
    assert np.all(np.isnan(one.stderr))


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_variance_of_the_probes(noise):
    """For v = A x with A symmetric the log-density's variance over probes is 2(|A|_F^2 - sum a_ii^2) or 2|A|_F^2 (score_sde.md, check 6).

    4000 probes, seed 0: relative standard error of a variance sqrt(2/4000) = 2 % for normal sums, up to 4 % here; bound 15 %.
    """
    a = np.array([[0.3, -0.5, 0.2], [-0.5, 0.1, 0.4], [0.2, 0.4, -0.6]])
    den = Denoiser(lambda x, t: x @ jnp.asarray(a, x.dtype), Linear(), "velocity")
    result = log_likelihood(den, jnp.ones((1, 3)), "hutchinson", jax.random.key(0), probes=4000, noise=noise, chunk=4000)
    frobenius, diagonal = np.sum(a**2), np.sum(np.diag(a) ** 2)
    want = 2 * (frobenius - (diagonal if noise == "rademacher" else 0.0))
    assert float(result.stderr[0]) ** 2 * 4000 == pytest.approx(want, rel=0.15)


def test_published_gaussian_table():
    """Bits/dim of N(0, s^2 I), d = 784, VP, rtol 1e-5: s = 1: 2.04953, s = 0.1: -1.26889 (tables_and_likelihood.md, point 3).

    One Rademacher probe is exact on isotropic data. The table's draw is its own: ours is compared with the exact density of the same x.
    """
    for s in (1.0, 0.1):
        gm = GaussianMixture(np.zeros((1, 784)), np.array([s]))
        x = gm.sample(jax.random.key(0), 4)
        result = log_likelihood(gm.denoiser(VP()), x, "hutchinson", jax.random.key(1), probes=1)
        bits = lambda log_prob: -np.asarray(log_prob, np.float64) / (784 * np.log(2))
        np.testing.assert_allclose(bits(result.log_prob), bits(gm.log_prob(x)), atol=2e-4)
        entropy = 0.5 * np.log2(2 * np.pi * np.e * s**2)
        assert entropy == pytest.approx({1.0: 2.04953, 0.1: -1.26889}[s], abs=0.01)


def test_batch_mates_do_not_matter():
    """log p of an example stays, to the last bit, when its batch-mates change (flows.md, check 12), and but for rounding when it is alone."""
    x = GM.sample(jax.random.key(0), 16)
    den, keys = GM.denoiser(Linear()), jax.random.split(jax.random.key(5), 16)
    for options in ({}, {"divergence": "hutchinson", "probes": 2}):
        every = log_likelihood(den, x, key=keys, **options).log_prob
        np.testing.assert_array_equal(log_likelihood(den, x.at[1:].add(0.1), key=keys, **options).log_prob[0], every[0])
        np.testing.assert_allclose(log_likelihood(den, x[7:8], key=keys[7:8], **options).log_prob, every[7:8], atol=2e-4)


def test_scaling_of_the_data_changes_log_p_by_its_jacobian(x64):
    """Data and exact model scaled by c: log p falls by D log c (tables_and_likelihood.md, point 2)."""
    c = 1.7
    gm, wide = GaussianMixture(0.8 * RING, np.full(8, 0.15)), GaussianMixture(c * 0.8 * RING, np.full(8, c * 0.15))
    x = gm.sample(jax.random.key(0), 8)
    log_p = log_likelihood(gm.denoiser(Linear()), x, rtol=1e-8, atol=1e-8, eps=1e-7).log_prob
    log_q = log_likelihood(wide.denoiser(Linear()), c * x, rtol=1e-8, atol=1e-8, eps=1e-7).log_prob
    np.testing.assert_allclose(log_q + 2 * np.log(c), log_p, atol=1e-5)


def test_chunks_images_and_latents():
    """The exact trace in chunks equals the whole one; x may have any shape; latent is the encoding."""
    den = Denoiser(lambda x, t: jnp.sin(x) * jnp.cos(t)[:, None, None], VP(), "noise")
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    whole = log_likelihood(den, x)
    np.testing.assert_allclose(log_likelihood(den, x, chunk=7).log_prob, whole.log_prob, rtol=1e-5)
    np.testing.assert_allclose(sample_adaptive(den, whole.latent).x, x, atol=2e-3)


def test_under_jit_and_with_conditions():
    """The contract's call inside jit, with a condition for each example."""
    fn = jax.tree_util.Partial(lambda scale, x, t, label: scale * label[:, None] * x, jnp.float32(0.1))
    call = jax.jit(lambda den, x: log_likelihood(den, x))
    result = call(Denoiser(fn, Linear(), "velocity", cond=jnp.array([0.0, 1.0])), jnp.ones((2, 3)))
    # dx/dt = a x: x_T = e^a x, log p = log N(x_T) + 3 a
    for a, log_prob in zip((0.0, 0.1), result.log_prob):
        span = a * (1 - Linear().eps)
        np.testing.assert_allclose(log_prob, -1.5 * np.exp(2 * span) - 1.5 * np.log(2 * np.pi) + 3 * span, rtol=1e-4)


def test_mistakes_are_named():
    den, x = GM.denoiser(Linear()), jnp.ones((1, 2))
    for options, words in (
        ({"divergence": "exakt"}, "expected exact or hutchinson"),
        ({"divergence": "hutchinson"}, "pass key"),
        ({"divergence": "hutchinson", "key": jax.random.key(0), "probes": 0}, "at least 1"),
        ({"noise": "uniform"}, "rademacher or gaussian"),
        ({"rtol": 0.0}, "rtol = 0.0"),
    ):
        with pytest.raises(ValueError, match=words):
            log_likelihood(den, x, **options)
