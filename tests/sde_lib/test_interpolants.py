"""Interpolants against closed forms: correlated Gaussian ends, of which every marginal, velocity and score is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from samplers.bridge import sample_bridge
from sde_lib import VP, Linear
from sde_lib.interpolants import Interpolant

S0, S1, M1 = 0.5, 1.2, 1.5  # x_0 ~ N(0, S0^2), x_1 ~ N(M1, S1^2)
CASES = [Interpolant(constant=0.1), Interpolant(bridge=1.0), Interpolant(Linear(), 0.2, 2**0.5), Interpolant(VP(), 0.0, 0.7)]


def entropic_covariance(e):
    """Of x_0 and x_1 under the entropic plan of regularization e with costs |x_0 - x_1|^2 (Janati et al. 2020, 2006.02572, theorem 1)."""
    return np.sqrt(S0**2 * S1**2 + e**2 / 16) - e / 4


def closed(interpolant, rho, t):
    """Mean and variance of x_t, and the gains of E[velocity - its mean | x_t] and E[z | x_t] on x_t - mean, for Cov(x_0, x_1) = rho; float64."""
    sde = interpolant.sde
    a, b, c = sde.alpha(t), sde.sigma(t), interpolant.gamma(t)
    da, db, dc = sde.alpha_dot(t), sde.sigma_dot(t), interpolant.gamma_dot(t)
    variance = (a * S0) ** 2 + (b * S1) ** 2 + 2 * a * b * rho + c**2
    covariance = da * a * S0**2 + db * b * S1**2 + (da * b + db * a) * rho + dc * c
    return b * M1, variance, db * M1, covariance / variance, c / variance


def ends(n, rho, seed=0):
    rng = np.random.default_rng(seed)
    e0, e1 = rng.standard_normal((2, n, 1))
    return S0 * e0, M1 + rho / S0 * e0 + np.sqrt(S1**2 - (rho / S0) ** 2) * e1, rng.standard_normal((n, 1))


@pytest.mark.parametrize("interpolant", CASES, ids=str)
def test_marginals_velocity_and_score(interpolant, x64):
    """Of 100,000 triples (seed 0): mean and variance of x_t, and the regressions of the velocity and of z on x_t, within 4 standard errors; gamma' is
    the slope of gamma; the score is that of the Gaussian marginal. Without gamma' z the velocity is off (control)."""
    n, rho = 100_000, 0.4
    x0, x1, z = (jnp.asarray(a) for a in ends(n, rho))
    for t in (0.2, 0.7):
        mean, variance, drift, gain, z_gain = closed(interpolant, rho, t)
        times = jnp.full(n, t)
        x, v = np.asarray(interpolant.point(x0, x1, z, times))[:, 0], np.asarray(interpolant.velocity(x0, x1, z, times))[:, 0]
        assert abs(x.mean() - mean) < 4 * np.sqrt(variance / n) and abs(x.var() / variance - 1) < 4 * np.sqrt(2 / n)

        def off(target, gain, x=x, mean=mean):
            error = (target - gain * (x - mean)) * (x - mean)
            return abs(error.mean()) / (error.std() / np.sqrt(n))

        assert off(v - drift, gain) < 4 and off(np.asarray(z)[:, 0], z_gain) < 4
        if interpolant.bridge:
            assert off(v - float(interpolant.gamma_dot(t)) * np.asarray(z)[:, 0] - drift, gain) > 20
            h = 1e-5
            np.testing.assert_allclose(interpolant.gamma_dot(t), (interpolant.gamma(t + h) - interpolant.gamma(t - h)) / (2 * h), rtol=1e-6)
        score = interpolant.score(z_gain * (x[:, None] - mean), times)[:, 0]
        np.testing.assert_allclose(score, -(x - mean) / variance, rtol=1e-9)


def _velocity(interpolant, rho, x, t):
    mean, _, drift, gain, _ = closed(interpolant, rho, t[0])
    return drift + gain * (x - mean)


def _noise(interpolant, rho, x, t):
    mean, _, _, _, gain = closed(interpolant, rho, t[0])
    return gain * (x - mean)


def test_ode_and_sde_keep_the_marginals():
    """The bridge of scale 1 between entropic pairs: 10,000 starts at t = 0.98 (seed 0) are carried to t = 0.02 by 200 steps, as an ODE and SDEs
    of D = 1/2, its own, and of D = gamma^2: mean and variance within 4 standard errors and 1 % for the steps. A score that is divided by s
    in the place of 2 s^2, torchcfm's slip, which makes it twice as large here, is off (control)."""
    n, s = 10_000, 1.0
    interpolant, rho = Interpolant(bridge=s), entropic_covariance(2 * s**2)
    times = np.linspace(0.98, 0.02, 201)
    at = lambda t: closed(interpolant, rho, t)[:2]
    (first, spread), (mean, variance) = at(times[0]), at(times[-1])
    x = first + np.sqrt(spread) * jax.random.normal(jax.random.key(0), (n, 1))
    velocity, noise = (Partial(partial(fn, interpolant, rho)) for fn in (_velocity, _noise))
    run = lambda noise, diffusion: np.asarray(
        sample_bridge(interpolant, velocity, noise, x, times, diffusion, jax.random.key(1)), np.float64
    )  # fmt: skip
    ok = lambda y: abs(y.mean() - mean) < 4 * np.sqrt(variance / n) + 0.01 and abs(y.var() / variance - 1) < 4 * np.sqrt(2 / n) + 0.01
    half = lambda t: 0.5 * s**2 + 0 * t
    assert ok(run(noise, lambda t: 0 * t)) and ok(run(noise, half)) and ok(run(noise, lambda t: interpolant.variance(t)))
    wrong = Partial(lambda x, t: 2 * noise(x, t))
    assert not ok(run(wrong, half))


def test_the_bridge_is_brownian(x64):
    """Between entropic pairs of regularization 2 s^2 the SDE of drift v + s^2/2 score has the pairs' own joint law, for their Brownian bridges mix to
    a Markov process: Cov(x_0, x_1) = S0^2 exp(integral of the drift's slope), to 1e-3 by the midpoint rule; of independent pairs it has not
    (control)."""
    s = 0.8
    interpolant, t = Interpolant(bridge=s), (np.arange(200_000) + 0.5) / 200_000

    def carried(rho):
        _, _, _, gain, z_gain = closed(interpolant, rho, t)
        return S0**2 * np.exp(np.mean(gain - 0.5 * s**2 * z_gain / interpolant.gamma(t)))

    rho = entropic_covariance(2 * s**2)
    np.testing.assert_allclose(carried(rho), rho, rtol=1e-3)
    assert abs(carried(0.0) - 0.0) > 0.01


def test_samples_do_not_depend_on_batch_mates_and_mistakes_are_refused():
    interpolant, times = Interpolant(bridge=1.0), np.linspace(0.9, 0.1, 5)
    velocity, noise = (Partial(partial(fn, interpolant, 0.0)) for fn in (_velocity, _noise))
    x, key, half = jnp.ones((4, 1)), jax.random.key(0), lambda t: 0.5 + 0 * t
    many = sample_bridge(interpolant, velocity, noise, x, times, half, key)
    np.testing.assert_allclose(sample_bridge(interpolant, velocity, noise, x[:2], times, half, key), many[:2], rtol=1e-6)
    for wrong in (
        lambda: sample_bridge(interpolant, velocity, noise, x, times, half),
        lambda: sample_bridge(interpolant, velocity, None, x, times, half, key),
        lambda: sample_bridge(interpolant, velocity, noise, x, np.linspace(1, 0, 5), half, key),
        lambda: sample_bridge(interpolant, velocity, noise, x, times, lambda t: -half(t), key),
        lambda: Interpolant(bridge=-1.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
