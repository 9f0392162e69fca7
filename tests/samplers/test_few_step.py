"""Jumps along exact flow maps of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import jumps, log_likelihood
from sde_lib import VE, VP, FlowMap, GaussianMixture, Linear


def gaussian():
    return GaussianMixture([[0.3, -0.8]], [[0.5, 0.2]])


@pytest.mark.few_paths
def test_exact_jumps_compose(sde, x64):
    """Whatever the times, deterministic jumps end where one does, at X_{0<-T}."""
    fm = gaussian().flow_map(sde)
    x = sde.prior_sample(jax.random.key(0), (5, 2))
    times = np.array([1.0, 0.8, 0.35, 0.1, 0.0]) * sde.T
    want = fm(x, sde.T, 0.0)
    np.testing.assert_allclose(jumps(fm, x, times[[0, -1]]), want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(jumps(fm, x, times), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sde", [*(pytest.param(sde, marks=pytest.mark.slow) for sde in (VP(), VE())), Linear()], ids=lambda sde: type(sde).__name__)
def test_renoised_jumps_keep_the_law(sde, gamma):
    """From x_T of the exact law, samples are of the law of x_0, and are others than the deterministic ones: means and covariances within 4 standard
    errors (n = 20,000, seed 1). Control: the denoiser in the place of the flow map is far out."""
    n, times = 20_000, np.array([1.0, 0.6, 0.3, 0.0]) * sde.T
    x_T = sde.perturb(jax.random.key(0), gaussian().sample(jax.random.key(1), n), sde.T)[0]
    std = np.hypot(sde.alpha(0.0) * np.asarray(gaussian().stds[0]), sde.sigma(0.0))

    def off(fm):
        x = np.asarray(jumps(fm, x_T, times, gamma, jax.random.key(2)), np.float64)
        z = (x - np.asarray(gaussian().means)) / std
        products = z[:, :, None] * z[:, None] - np.eye(2)
        return x, max(np.abs(a.mean(0) / (a.std(0) / np.sqrt(n))).max() for a in (z, products))

    fm, den = gaussian().flow_map(sde), gaussian().denoiser(sde)
    x, found = off(fm)
    assert found < 4
    assert np.sqrt(np.mean((x - jumps(fm, x_T, times)) ** 2)) > 0.05
    assert off(FlowMap(lambda x, t, s: den.v(x, t), sde, "v"))[1] > 20


def test_restart_is_that_of_consistency_models():
    """gamma = 1 jumps to the data and noises them again: x = alpha_s X_{0<-t}(x) + sigma_s z (2303.01469, algorithm 1); an example's noise is its
    own, and other times compile nothing anew."""
    traces, den = [], gaussian().denoiser(VP())

    def fn(x, t, s):
        traces.append(1)
        return den.v(x, t) + 0.1 * s[:, None]

    sde, fm, key = VP(), FlowMap(fn, VP(), "v"), jax.random.key(3)
    x = sde.prior_sample(jax.random.key(0), (4, 2))
    got = jumps(fm, x, [1.0, 0.5, 0.0], 1.0, key)
    count = len(traces)
    z = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), 0), (2,)))(jnp.arange(4))
    np.testing.assert_allclose(got, fm(sde.alpha(0.5) * fm(x, 1.0, 0.0) + sde.sigma(0.5) * z, 0.5, 0.0), rtol=1e-5, atol=1e-5)
    before = len(traces)
    np.testing.assert_array_equal(jumps(fm, x, [1.0, 0.4, 0.0], 1.0, key)[1], jumps(fm, x[:2], [1.0, 0.4, 0.0], 1.0, key)[1])
    assert count == 1 and len(traces) == before + 1  # of the other batch


def test_impossible_jumps_are_refused():
    fm, x = gaussian().flow_map(VP()), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="of a FlowMap: expected a sde_lib.Denoiser"):
        log_likelihood(fm, x)
    for words, times, *rest in (("must decrease", [0.0, 1.0]), ("0 .deterministic. to 1", [1.0, 0.0], 1.5), ("pass key", [1.0, 0.0], 0.5)):
        with pytest.raises(ValueError, match=words):
            jumps(fm, x, times, *rest)
