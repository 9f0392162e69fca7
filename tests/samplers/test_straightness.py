"""Straightness against closed forms: check 7."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import sample, solvers
from samplers.straightness import normalized_path_energy, straightness
from sde_lib import VP, Denoiser, GaussianMixture, Linear, Trig

STD = 0.5
GAUSSIAN = lambda: GaussianMixture(np.zeros((1, 1)), np.array([STD]))


def reflowed(sde) -> Denoiser:
    """The exact regression on the pairs of N(0, STD^2)'s flow, x_0 = STD x_T/sigma(T) (alpha(T) = 0): x_t = (alpha STD + sigma) eps tells eps."""
    return Denoiser(lambda x, t: ((sde.alpha_dot(t) * STD + sde.sigma_dot(t)) / (sde.alpha(t) * STD + sde.sigma(t)))[:, None] * x, sde, "velocity")


def test_check_7(x64):
    """N(0, 1) to N(0, 1/4) on the linear path: S = (2 - pi/2)/2, NPE .858407; after exact reflow S <= 1e-8. A flow is linear in x_T: E x_T^2 = 1."""
    x_T = jnp.array([[1.0], [2.0]])
    found = straightness(GAUSSIAN().denoiser(Linear()), x_T, 1e-10, 1e-10, end=0.0)
    np.testing.assert_allclose(found.straightness, np.array([1, 4]) * (2 - np.pi / 2) * STD, rtol=1e-6)
    assert abs(found.straightness[0] - 0.214602) < 1e-6 and np.allclose(found.x, STD * x_T, atol=1e-8) and found.success.all()
    assert abs(normalized_path_energy(float(found.energy[0]), 1 - STD) - 0.858407) < 1e-6
    straight = straightness(reflowed(Linear()), x_T, 1e-10, 1e-10, end=0.0)
    assert np.all(straight.straightness <= 1e-8) and abs(normalized_path_energy(float(straight.energy[0]), 1 - STD)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("sde", [Linear(), Trig()], ids=["Linear", "Trig"])
def test_straight_means_exact_in_one_step(x64, sde):
    """On any path: S = 0, and one step of DDIM ends where the flow does; of the flow before reflow neither holds."""
    x_T = jnp.array([[1.0]])
    for den, straight in ((reflowed(sde), True), (GAUSSIAN().denoiser(sde), False)):
        found = straightness(den, x_T, 1e-9, 1e-9)
        one_step = sample(den, x_T, np.array([sde.T, sde.eps]), solvers.ddim())
        assert (found.straightness[0] < 1e-8) == straight and (np.abs(one_step - found.x).max() < 1e-6) == straight


@pytest.mark.slow
def test_examples_and_conditions_are_apart():
    """Of an example alone as among others, and each with its own condition: data at c are reached from any x_T along a line."""
    den = Denoiser(lambda x, t, c: jnp.broadcast_to(c[:, None], x.shape), VP(), "data", cond=jnp.array([0.0, 1.0, -2.0]))
    x_T = jax.random.normal(jax.random.key(0), (3, 2))
    found = straightness(den, x_T, end=0.1)
    np.testing.assert_allclose(found.straightness, 0, atol=1e-5)
    mixture = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0.1, 0.1])).denoiser(Linear())
    together, alone = straightness(mixture, x_T), straightness(mixture, x_T[1:2])
    np.testing.assert_allclose(together.straightness[1:2], alone.straightness, rtol=1e-4)
    assert together.straightness.mean() > 0.1


def test_mistakes_are_named():
    den, x = GAUSSIAN().denoiser(Linear()), jnp.ones((1, 1))
    for bad, words in (({"end": 1.0}, "0 <= end < T"), ({"nodes": 0}, "at least one node"), ({"rtol": 2.0}, "tolerance between")):
        with pytest.raises(ValueError, match=words):
            straightness(den, x, **bad)
