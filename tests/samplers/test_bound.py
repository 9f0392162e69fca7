"""The variational bound on an exact denoiser, where it is an equality in the mean; float32, fixed seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import log_likelihood, variational_bound
from sde_lib import EDM, VP, GaussianMixture, Linear

RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1)
GM = GaussianMixture(0.8 * RING, np.full(8, 0.15))
X = GM.sample(jax.random.key(0), 4096)


@pytest.mark.parametrize("sde", [VP(), Linear(), EDM()], ids=lambda p: type(p).__name__)
def test_equality_in_the_mean(sde):
    """Over 4096 x 64 times the bound less -log p (of the noise at eps = 1e-3) is 0 to 4 standard errors and the priors' mismatch of 0.01."""
    bound = variational_bound(GM.denoiser(sde), X, jax.random.key(1), eps=1e-3)
    gap = bound.total + GM.log_prob(X)
    error = float(gap.std() / 64)
    assert abs(float(gap.mean())) < 4 * error + 0.01 and error < 0.05
    np.testing.assert_allclose(bound.total, bound.prior + bound.decoder + bound.diffusion, rtol=1e-5)


def test_standard_error():
    """Over 2000 keys of one example the standard deviation is the standard error's root mean square, to 10 % (itself 1.6 %)."""
    bound = variational_bound(GM.denoiser(VP()), jnp.tile(X[:1], (2000, 1)), jax.random.key(1), eps=1e-3)
    assert float(bound.total.std()) == pytest.approx(float(jnp.sqrt(jnp.mean(bound.stderr**2))), rel=0.1)


@pytest.mark.slow
def test_steps_loosen_the_bound():
    """VDM, section 4.1: fewer steps, a larger bound; 1000 are the continuous one to 1 %; the flow's -log p is below."""
    den, nll = GM.denoiser(VP()), -float(log_likelihood(GM.denoiser(VP()), X[:512], rtol=1e-2, atol=1e-2).log_prob.mean())
    mean = lambda steps: float(variational_bound(den, X[:512], jax.random.key(1), 128, steps, eps=1e-3).diffusion.mean())
    few, some, many, all_of_them = (mean(steps) for steps in (10, 30, 1000, None))
    assert few > some > many and many == pytest.approx(all_of_them, rel=0.01)
    assert float(variational_bound(den, X[:512], jax.random.key(1), 128, 10, eps=1e-3).total.mean()) > nll


def test_discrete_decoder():
    """Levels of width 0.1 that eps = 1e-3 tells apart: the decoder costs nothing, and the bound is the entropy to 4 standard errors and 0.02 nats."""
    edges = 0.1 * (np.arange(41) - 20.5)
    middles = 0.5 * (edges[1:] + edges[:-1])
    p = np.diff(jax.scipy.stats.norm.cdf(edges, scale=0.2))
    x = jnp.asarray(np.random.default_rng(0).choice(middles, (4096, 1), p=p / p.sum()), jnp.float32)
    # the exact denoiser of data that lie on the middles
    den = GaussianMixture(middles[:, None], np.full(40, 1e-4), p).denoiser(Linear())
    bound = variational_bound(den, x, jax.random.key(1), 256, eps=1e-3, middles=middles)
    entropy = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    assert float(jnp.abs(bound.decoder).max()) < 1e-4
    assert float(bound.total.mean()) == pytest.approx(entropy, abs=4 * float(bound.total.std() / 64) + 0.02)


def test_examples_do_not_depend_on_each_other():
    keys = jax.random.split(jax.random.key(1), 8)
    every = variational_bound(GM.denoiser(VP()), X[:8], keys, 8).total
    np.testing.assert_allclose(variational_bound(GM.denoiser(VP()), X[3:5], keys[3:5], 8).total, every[3:5], rtol=1e-5)
    with pytest.raises(ValueError, match="even number of times"):
        variational_bound(GM.denoiser(VP()), X[:8], keys, 1)
