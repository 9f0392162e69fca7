"""The log-likelihood against closed forms (flows.md, checks 3, 4 and 12; score_sde.md, check 6; tables_and_likelihood.md)."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import log_likelihood, sample_adaptive, variational_bound
from sde_lib import SDE, VP, Cosine, Denoiser, GaussianMixture, Linear

RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1)
GM = GaussianMixture(0.8 * RING, np.full(8, 0.15))


def test_mixture_to_the_stated_accuracy():
    """256 points at 1e-5: mean error <= 1e-4 nats, largest 3e-4 (1.8e-4 of it the noise at eps); to the density at eps, the largest <= 1e-4."""
    x = GM.sample(jax.random.key(0), 256)
    log_prob = log_likelihood(GM.denoiser(Linear()), x).log_prob
    error = log_prob - GM.log_prob(x)
    assert abs(float(error.mean())) <= 1e-4 and float(jnp.abs(error).max()) <= 3e-4
    assert float(jnp.abs(log_prob - GM.marginal_log_prob(Linear(), x, Linear().eps)).max()) <= 1e-4
    wider = log_likelihood(GaussianMixture(0.8 * RING, np.full(8, 0.1515)).denoiser(Linear()), x).log_prob  # control: a score 1 % off
    assert float(jnp.abs(wider - GM.log_prob(x)).max()) > 1e-3


@pytest.mark.slow
def test_mixture_to_a_fine_tolerance(x64):
    """64 points at 1e-7: the largest error <= 5e-6 nats."""
    gm = GaussianMixture(0.8 * RING, np.full(8, 0.15))
    x = gm.sample(jax.random.key(0), 64)
    error = log_likelihood(gm.denoiser(Linear()), x, rtol=1e-7, atol=1e-7).log_prob - gm.marginal_log_prob(Linear(), x, Linear().eps)
    assert float(jnp.abs(error).max()) <= 5e-6


@pytest.mark.slow
def test_errors_of_the_path_do_not_count_with_an_exact_score(x64):
    """With a path of 25 nodes (some 1e-2), log p(x) - log p(x_T) is exact to 1e-3 nats on 25 nodes; the coupled solve at 1e-2 is 30 times worse."""
    gm, sde = GaussianMixture(0.8 * RING, np.full(8, 0.15)), VP()
    x = gm.sample(jax.random.key(0), 64)
    den, start = gm.denoiser(sde), gm.marginal_log_prob(sde, x, sde.eps)
    wrong = lambda result: result.log_prob - sde.prior_log_prob(result.latent) + gm.marginal_log_prob(sde, result.latent, sde.T) - start
    loose = log_likelihood(den, x, rtol=1e-2, atol=1e-2)
    errors = jnp.abs(wrong(loose))
    assert errors.max() < 1e-3 and jnp.sqrt(jnp.mean(errors**2)) < 1e-4
    assert jnp.sqrt(jnp.mean(wrong(log_likelihood(den, x, rtol=1e-2, atol=1e-2, adjoint=diffrax.ForwardMode())) ** 2)) > 3e-3
    assert jnp.all(loose.error <= 0.02 + 0.01 * 20) and jnp.all(loose.divergences == 25) and jnp.all(loose.nfe == 50)


@pytest.mark.parametrize("path, kind", [pytest.param(VP(), "noise", marks=pytest.mark.slow), (Linear(), "velocity")], ids=["VP", "Linear"])
@pytest.mark.slow
def test_a_network_whose_score_is_none(path, kind):
    """Where the prediction is no conditional expectation the path's own accuracy counts: as the coupled solve at 1e-6, to 10 atol per dimension."""
    den = Denoiser(lambda x, t: jnp.sin(x) * jnp.cos(t)[:, None], path, kind)
    x = jax.random.normal(jax.random.key(0), (8, 20))
    ours, coupled = log_likelihood(den, x), log_likelihood(den, x, rtol=1e-6, atol=1e-6, adjoint=diffrax.ForwardMode())
    np.testing.assert_allclose(ours.log_prob, coupled.log_prob, atol=2e-3)
    np.testing.assert_allclose(ours.latent, coupled.latent, atol=2e-4)


@pytest.mark.slow
def test_loose_estimates_need_few_divergences():
    """An estimated divergence at 1e-2: fewer than 20 nodes on average, and off from the same probes' coupled solve at 1e-5 by less than D atol in the
    root mean square. An exact one begins with 25."""
    x, den, keys = GM.sample(jax.random.key(0), 64), GM.denoiser(Linear()), jax.random.split(jax.random.key(1), 64)
    options = {"divergence": "hutchinson", "key": keys, "probes": 1}
    found = log_likelihood(den, x, rtol=1e-2, atol=1e-2, **options)
    want = log_likelihood(den, x, adjoint=diffrax.ForwardMode(), **options)
    assert found.divergences.mean() < 20 and found.divergences.min() == 13
    assert jnp.sqrt(jnp.mean((found.log_prob - want.log_prob) ** 2)) < 0.02
    assert log_likelihood(den, x, rtol=1e-2, atol=1e-2).divergences.min() == 25


@pytest.mark.slow
def test_estimates_keep_their_tolerance(x64):
    """Largest error of 256 points at 1e-5 against the same probes' solve at 1e-8: 1e-4 nats; Hutch++ with 2 probes in 2-D is exact, to 2e-4."""
    gm = GaussianMixture(0.8 * RING, np.full(8, 0.15))
    x, den, keys = gm.sample(jax.random.key(0), 256), gm.denoiser(Linear()), jax.random.split(jax.random.key(1), 256)
    call = lambda kind, tolerance, **more: log_likelihood(den, x, kind, keys, tolerance, tolerance, **more).log_prob
    assert jnp.abs(call("hutchinson", 1e-5) - call("hutchinson", 1e-8)).max() < 1e-4
    assert jnp.abs(call("hutch++", 1e-5, probes=2) - call("exact", 1e-8)).max() < 2e-4


@pytest.mark.slow
def test_derivatives_by_an_adjoint(x64):
    """d log p/dx is the score at eps; d log p/d(parameter) is the difference quotient."""
    gm, sde = GaussianMixture(0.8 * RING[:3], np.full(3, 0.3)), Linear()
    x, den = gm.sample(jax.random.key(0), 4), gm.denoiser(sde)
    options = {"rtol": 1e-7, "atol": 1e-7, "adjoint": diffrax.RecursiveCheckpointAdjoint()}
    np.testing.assert_allclose(jax.grad(lambda x: log_likelihood(den, x, **options).log_prob.sum())(x), den.score(x, sde.eps), atol=1e-3)

    def mean(scale):
        return log_likelihood(
            Denoiser(jax.tree_util.Partial(lambda s, x, t: s * den.velocity(x, t), scale), sde, "velocity"), x, **options
        ).log_prob.mean()

    quotient = (mean(jnp.asarray(1.001)) - mean(jnp.asarray(0.999))) / 0.002
    np.testing.assert_allclose(jax.grad(mean)(jnp.asarray(1.0)), quotient, rtol=1e-3)


@pytest.mark.slow
def test_hutch_pp():
    """With as many probes as dimensions Hutch++ is exact; with fewer unbiased: 64 points, 4 standard errors."""
    rng = np.random.default_rng(0)
    gm = GaussianMixture(rng.normal(size=(3, 6)), rng.uniform(0.2, 0.6, (3, 6)), eigenvectors=np.linalg.qr(rng.normal(size=(3, 6, 6)))[0])
    x, den = gm.sample(jax.random.key(0), 64), gm.denoiser(VP())
    exact = log_likelihood(den, x).log_prob
    np.testing.assert_allclose(log_likelihood(den, x, "hutch++", jax.random.key(1), probes=6).log_prob, exact, atol=2e-3)
    few = log_likelihood(den, x, "hutch++", jax.random.key(2), probes=2)
    assert abs(float(jnp.mean(few.log_prob - exact))) < 4 * float(jnp.std(few.log_prob - exact)) / 8


@pytest.mark.slow
def test_intervals_of_the_mean_are_calibrated():
    """95 % intervals of the mean over 32 examples, by 4 probes each, cover the exact mean 93 to 97 % of 1000 trials (standard error 0.7 %)."""
    rng = np.random.default_rng(0)
    gm = GaussianMixture(0.5 * rng.normal(size=(2, 5)), rng.uniform(0.4, 0.8, (2, 5)), eigenvectors=np.linalg.qr(rng.normal(size=(2, 5, 5)))[0])
    x, den = gm.sample(jax.random.key(0), 32), gm.denoiser(Linear())
    exact = log_likelihood(den, x).log_prob
    many = log_likelihood(den, jnp.tile(x, (1000, 1)), "hutchinson", jax.random.key(1), rtol=1e-3, atol=1e-3)
    error = (many.log_prob.reshape(1000, 32) - exact).mean(1)
    stderr = jnp.sqrt(jnp.sum(many.stderr.reshape(1000, 32) ** 2, 1)) / 32
    assert 0.93 <= float(jnp.mean(jnp.abs(error) <= 1.96 * stderr)) <= 0.97


SLOW = [pytest.param(cls(), marks=pytest.mark.slow) for cls in SDE.__subclasses__() if cls is not Cosine]


@pytest.mark.parametrize("sde", [Cosine(), *SLOW], ids=lambda p: type(p).__name__)
@pytest.mark.slow
def test_every_path(sde, x64):
    """log p is that of the marginal at eps up to the prior's mismatch, which is known: compare p_eps with the prior's own density at T."""
    gm = GaussianMixture(0.8 * RING, np.full(8, 0.15))
    x = gm.sample(jax.random.key(0), 16)
    result = log_likelihood(gm.denoiser(sde), x, rtol=1e-7, atol=1e-7)
    mismatch = gm.marginal_log_prob(sde, result.latent, sde.T) - sde.prior_log_prob(result.latent)
    np.testing.assert_allclose(result.log_prob + mismatch, gm.marginal_log_prob(sde, x, sde.eps), atol=2e-4)
    assert np.all(result.stderr == 0) and np.all(result.success)


@pytest.mark.slow
def test_density_integrates_to_one():
    """The integral of exp(log p) over a 121 x 121 grid on [-2, 2]^2 is 1 +- 1e-4 (the trapezoid is exact to rounding for Gaussians this wide)."""
    side = np.linspace(-2, 2, 121)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    log_prob = log_likelihood(GM.denoiser(Linear()), points).log_prob
    assert np.exp(np.asarray(log_prob, np.float64)).sum() * (side[1] - side[0]) ** 2 == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_hutchinson_agrees_and_knows_its_error():
    """128 probes, 8 points, seed 0: within 4 standard errors of the exact value; stderr falls as 1/sqrt(probes)."""
    x = GM.sample(jax.random.key(0), 8)
    den = GM.denoiser(Linear())
    exact = log_likelihood(den, x).log_prob
    many = log_likelihood(den, x, "hutchinson", jax.random.key(1), probes=128, chunk=64)
    assert np.all(np.abs(many.log_prob - exact) <= 4 * many.stderr + 1e-4)
    few = log_likelihood(den, x, "hutchinson", jax.random.key(2), probes=8)
    np.testing.assert_allclose(np.mean(few.stderr / many.stderr), 4.0, rtol=0.25)
    one = log_likelihood(den, x, "hutchinson", jax.random.key(1), probes=1)
    assert np.all(np.isnan(one.stderr))


@pytest.mark.slow
def test_the_standard_error_of_probes_is_their_spread():
    """Check 4 of flows.md, by fixed seeds: 512 probes of 8 points are within 3 standard errors; the standard error of 16 probes is the spread of 400
    repeats to 15 % (each of which knows its own to 18 %, their root mean square and the spread to 3.5 %), and not that of 8 probes."""
    x, den = GM.sample(jax.random.key(0), 8), GM.denoiser(Linear())
    exact = log_likelihood(den, x).log_prob
    many = log_likelihood(den, x, "hutchinson", jax.random.key(1), probes=512, chunk=64)
    assert np.all(np.abs(many.log_prob - exact) <= 3 * many.stderr + 1e-4)
    again = jnp.tile(x[:1], (400, 1))
    repeats = {probes: log_likelihood(den, again, "hutchinson", jax.random.key(probes), probes=probes) for probes in (8, 16)}
    said = float(jnp.sqrt(jnp.mean(repeats[16].stderr ** 2)))
    assert said == pytest.approx(float(jnp.std(repeats[16].log_prob)), rel=0.15)
    assert said != pytest.approx(float(jnp.std(repeats[8].log_prob)), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["rademacher", pytest.param("gaussian", marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_published_gaussian_table():
    """Bits/dim of N(0, s^2 I), d = 784, VP, rtol 1e-5: s = 1: 2.04953, s = 0.1: -1.26889, s = 0.01: -4.59693 (tables_and_likelihood.md, point 3),
    to 2e-4 of the density at eps; what eps = 1e-5 adds to the bits is at most 0.0014, at s = 0.004, where from eps = 1e-6 all is within 0.001.

    One Rademacher probe is exact on isotropic data. The table's draw is its own: ours is compared with the exact density of the same x.
    """
    for s in (1.0, 0.1, 0.01, 0.004):
        gm = GaussianMixture(np.zeros((1, 784)), np.array([s]))
        x = gm.sample(jax.random.key(0), 4)
        result = log_likelihood(gm.denoiser(VP()), x, "hutchinson", jax.random.key(1), probes=1)
        bits = lambda log_prob: -np.asarray(log_prob, np.float64) / (784 * np.log(2))
        np.testing.assert_allclose(bits(result.log_prob), bits(gm.marginal_log_prob(VP(), x, VP().eps)), atol=2e-4)
        if s == 0.004:
            nearer = log_likelihood(gm.denoiser(VP()), x, "hutchinson", jax.random.key(1), probes=1, eps=1e-6)
            np.testing.assert_allclose(bits(nearer.log_prob), bits(gm.log_prob(x)), atol=1e-3)
        # E[-log p_eps(x)] of x without noise, beside the entropy of the data
        ratio = s**2 / float((VP().alpha(1e-5) * s) ** 2 + VP().sigma(1e-5) ** 2)
        truncation = 0.5 / np.log(2) * (ratio - 1 - np.log(ratio))
        entropy = 0.5 * np.log2(2 * np.pi * np.e * s**2)
        assert 0 <= truncation <= 0.0014 and entropy == pytest.approx({1.0: 2.04953, 0.1: -1.26889, 0.01: -4.59693}.get(s, entropy), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("path", [VP(), Linear()], ids=["VP", "Linear"])
def test_truncation_at_eps(path, x64):
    """What the noise at eps = 1e-3 costs is known to 1 %, by either solve."""
    gm = GaussianMixture(0.8 * RING, np.full(8, 0.15))
    x = gm.sample(jax.random.key(0), 32)
    want = gm.log_prob(x) - gm.marginal_log_prob(path, x, 1e-3)
    for adjoint in (None, diffrax.ForwardMode()):
        found = log_likelihood(gm.denoiser(path), x, rtol=1e-3, atol=1e-3, eps=1e-3, adjoint=adjoint).truncation
        assert jnp.sqrt(jnp.mean((found - want) ** 2)) < 0.01 * jnp.sqrt(jnp.mean(want**2))


@pytest.mark.slow  # to the last bit and in the fast suite: test_honest_likelihood.py
@pytest.mark.parametrize("options", [{}, {"divergence": "hutchinson", "probes": 2}], ids=["exact", "probes"])
def test_batch_mates_do_not_matter(options):
    """log p of an example stays, to the last bit, when its batch-mates change (flows.md, check 12), and but for rounding when it is alone."""
    x = GM.sample(jax.random.key(0), 16)
    den, keys = GM.denoiser(Linear()), jax.random.split(jax.random.key(5), 16)
    every = log_likelihood(den, x, key=keys, **options).log_prob
    np.testing.assert_array_equal(log_likelihood(den, x.at[1:].add(0.1), key=keys, **options).log_prob[0], every[0])
    np.testing.assert_allclose(log_likelihood(den, x[7:8], key=keys[7:8], **options).log_prob, every[7:8], atol=2e-4)


@pytest.mark.slow
def test_scaling_of_the_data_changes_log_p_by_its_jacobian(x64):
    """Data and exact model scaled by c: log p falls by D log c (tables_and_likelihood.md, point 2)."""
    c = 1.7
    gm, wide = GaussianMixture(0.8 * RING, np.full(8, 0.15)), GaussianMixture(c * 0.8 * RING, np.full(8, c * 0.15))
    x = gm.sample(jax.random.key(0), 8)
    log_p = log_likelihood(gm.denoiser(Linear()), x, rtol=1e-8, atol=1e-8, eps=1e-7).log_prob
    log_q = log_likelihood(wide.denoiser(Linear()), c * x, rtol=1e-8, atol=1e-8, eps=1e-7).log_prob
    np.testing.assert_allclose(log_q + 2 * np.log(c), log_p, atol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_each_example_keeps_its_condition_on_later_levels(x64):
    """A mixture moved by its condition, at a tolerance at which some examples need more nodes than others, and some diffrax."""
    gm, path = GaussianMixture(0.8 * RING, np.full(8, 0.15)), Linear()
    shift = jnp.linspace(-1.0, 1.0, 64)[:, None]
    x = gm.sample(jax.random.key(0), 64)
    exact = gm.denoiser(path)
    v = lambda x, t, c: exact.v(x - path.alpha(t)[:, None] * c, t) - path.sigma(t)[:, None] * c
    result = log_likelihood(Denoiser(v, path, "v", cond=shift), x + shift, rtol=3e-7, atol=3e-7, eps=1e-5)
    assert len(np.unique(result.divergences)) > 1 and len(np.unique(result.nfe - result.divergences)) > 2
    want = gm.marginal_log_prob(path, x + shift - path.alpha(1e-5) * shift, path.eps)
    np.testing.assert_allclose(result.log_prob, want, atol=5e-5)


def test_only_denoisers_have_a_likelihood():
    """A few-step map, or any other function, is refused by name."""
    for fn in (log_likelihood, variational_bound):
        with pytest.raises(ValueError, match="expected a sde_lib.Denoiser"):
            fn(lambda x, t, s: x, jnp.ones((1, 2)), key=jax.random.key(0))


def test_mistakes_are_named():
    den, x = GM.denoiser(Linear()), jnp.ones((1, 2))
    for options, words in (
        ({"divergence": "hutch++", "key": jax.random.key(0), "probes": 3}, "at most the dimension, 2"),
        ({"divergence": "exakt"}, "expected exact or hutchinson"),
        ({"divergence": "hutchinson"}, "pass key"),
        ({"divergence": "hutchinson", "key": jax.random.key(0), "probes": 0}, "at least 1"),
        ({"noise": "uniform"}, "rademacher or gaussian"),
        ({"rtol": 0.0}, "rtol = 0.0"),
    ):
        with pytest.raises(ValueError, match=words):
            log_likelihood(den, x, **options)
