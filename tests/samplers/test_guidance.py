"""Guidance on mixtures whose conditional and unconditional scores are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import classifier_free, grids, sample, solvers
from sde_lib import PLANE, VP, Denoiser, GaussianMixture

MEANS, STDS = np.array([[-1.0, 0.3], [0.8, -0.2]]), np.array([0.3, 0.4])
BOTH = GaussianMixture(MEANS, STDS)
EACH = [GaussianMixture(m[None], s[None]) for m, s in zip(MEANS, STDS)]


def conditional(sde, kind):
    """An exact model of one component, or of the mixture for label 2."""
    dens = [gm.denoiser(sde) for gm in (*EACH, BOTH)]

    def fn(x, t, label):
        return jnp.stack([den.predict(kind, x, t) for den in dens])[label, jnp.arange(len(x))]

    return Denoiser(fn, sde, kind, cond=jnp.array([0, 1, 1, 0]))


@pytest.mark.parametrize("kind", ["noise", *(pytest.param(kind, marks=pytest.mark.slow) for kind in PLANE if kind != "noise")])
def test_every_prediction_is_extrapolated(kind, x64):
    """P_none + omega (P_cond - P_none) for each prediction of a model of each kind; omega = 1 is the conditional model."""
    sde, omega = VP(), 2.5
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.1, 0.3, 0.6, 0.9])
    den = conditional(sde, kind)
    guided = classifier_free(den, 2, omega)
    for target in PLANE:
        none = BOTH.denoiser(sde).predict(target, x, t)
        wanted = none + omega * (den.predict(target, x, t) - none)
        np.testing.assert_allclose(guided.predict(target, x, t), wanted, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(classifier_free(den, 2, 1.0).predict(target, x, t), den.predict(target, x, t), rtol=1e-8, atol=1e-10)


def test_one_compilation_serves_every_omega():
    den, traces = conditional(VP(), "noise"), []

    @jax.jit
    def data(den, x):
        traces.append(1)
        return den.data(x, 0.5)

    x = jnp.ones((4, 2))
    results = [data(classifier_free(den, 2, omega), x) for omega in (1.0, 2.0, 3.0)]
    assert len(traces) == 1 and not np.allclose(results[0], results[2])


def test_guided_samples_move_away_from_the_other_class():
    """Of two classes, guidance pushes samples of each beyond its mean, away from the other's; the conditional model does not."""
    sde = VP()
    labels = jnp.arange(4000) % 2
    den = Denoiser(conditional(sde, "noise").fn, sde, "noise", cond=labels)
    times = grids.log_snr(sde, 20)
    x_T = sde.prior_sample(jax.random.key(1), (4000, 2))
    along = lambda x: np.array([((x[labels == k] - MEANS[k]) @ (MEANS[k] - MEANS[1 - k])).mean() for k in (0, 1)])
    plain, strong = (along(np.asarray(sample(classifier_free(den, 2, omega), x_T, times, solvers.heun()))) for omega in (1.0, 3.0))
    error = 0.4 * np.linalg.norm(MEANS[0] - MEANS[1]) / np.sqrt(2000)
    assert np.all(np.abs(plain) < 5 * error) and np.all(strong > 10 * error), (plain, strong, error)


def test_needs_a_condition():
    with pytest.raises(ValueError, match="no cond"):
        classifier_free(BOTH.denoiser(VP()), 2, 2.0)
