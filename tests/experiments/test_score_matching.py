"""Implicit and sliced score matching against closed forms, and the losses of chains."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import objectives
from experiments.data import Dataset
from experiments.score_matching import LOSSES, implicit
from sde_lib import DDPM, NCSN, PLANE, SDE, VP, GaussianMixture, Linear

PLAIN = Dataset("plain", {}, {}, 0.0, 1.0)  # values are x themselves
GM = GaussianMixture([[-0.8, 0.2], [0.5, -0.1]], [0.3, 0.2], [1.0, 2.0])


@dataclass(frozen=True)
class Bent:
    """The exact score of `GM`, as the network's prediction of `kind`, scaled by 1 + amount[0] and moved by amount[1] tanh(x)."""

    sde: SDE
    kind: str = "noise"
    sigma_data: float = 0.5
    schedule: None = None
    interpolant: None = None
    none = None

    def __call__(self, amount, x, t, label=None, example=None, dropout_key=None):
        return (1 + amount[0]) * GM.denoiser(self.sde).predict(self.kind, x, t) + amount[1] * jnp.tanh(x)


def batch(n):
    x = GM.sample(jax.random.key(0), n)
    return {"value": np.asarray(x), "label": np.zeros(n, np.int32), "position": np.arange(n, dtype=np.uint32)}


def objective(loss, weighting="noise", time="uniform"):
    return ConfigDict({"loss": loss, "weighting": weighting, "time": {"name": time}})


def losses(net, loss, amount, n, **options):
    """Of n examples, [n]."""
    rows = batch(n)
    value = jax.jit(lambda amount: objectives.loss(net, amount, PLAIN, objective(loss, **options), jax.random.PRNGKey(3), rows))
    return np.asarray(value(jnp.asarray(amount)), np.float64)


def z_of(values):
    """The mean in standard errors."""
    return values.mean(0) / (values.std(0) / np.sqrt(len(values)))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_exact_score_is_stationary(loss):
    """At the exact score the derivative of the loss along two perturbations of it vanishes within 4 standard errors (20,000 examples, seeds 0 and 3);
    at a score 20 % too large it is 20 of them or more away."""
    rows = batch(20_000)
    value = lambda amount: objectives.loss(Bent(VP()), amount, PLAIN, objective(loss), jax.random.PRNGKey(3), rows)
    along = jax.jit(lambda amount, unit: jax.jvp(value, (amount,), (unit,))[1])
    slopes = lambda amount: np.stack([along(jnp.array(amount), unit) for unit in jnp.eye(2)], 1).astype(np.float64)
    exact, wrong = z_of(slopes([0.0, 0.0])), z_of(slopes([0.2, 0.1]))
    assert np.abs(exact).max() < 4 and np.abs(wrong).min() > 20, (exact, wrong)


@pytest.mark.parametrize("kind", [kind if kind in ("noise", "velocity") else pytest.param(kind, marks=pytest.mark.slow) for kind in PLANE])
def test_implicit_is_denoising_less_a_constant(kind):
    """E regression - E implicit = E w / sigma^2 per dimension, whatever is predicted and however wrong: 1 in the weighting of the noise.

    20,000 examples, seeds 0 and 3; bound 4 standard errors (of the difference of paired losses, about 0.01).
    """
    sde = Linear() if kind == "velocity" else VP()
    gap = losses(Bent(sde, kind), "regression", [0.1, 0.2], 20_000) - losses(Bent(sde, kind), "implicit", [0.1, 0.2], 20_000)
    error = gap.std() / np.sqrt(len(gap))
    assert abs(gap.mean() - 1.0) < 4 * error < 0.2, (gap.mean(), error)


def test_implicit_in_closed_form_on_a_gaussian():
    """At the exact score of N(0, V) at one time, (|s|^2 + 2 tr ds/dx)/D has the mean -1/V: its mean over 20,000 draws within 4 standard errors, and
    that of each draw is x^2/V^2 - 2/V exactly."""
    sde, t, n = VP(), 0.3, 20_000
    gm = GaussianMixture(np.zeros((1, 3)), np.array([0.5]))
    variance = (sde.alpha(t) * 0.5) ** 2 + sde.sigma(t) ** 2
    x = np.sqrt(variance) * jax.random.normal(jax.random.key(0), (n, 3))
    run = jax.jit(lambda name: implicit(gm.denoiser(sde), x, jnp.full(n, t), name, jax.random.split(jax.random.key(1), n)), static_argnums=0)
    exact = np.asarray(run("implicit"), np.float64)
    np.testing.assert_allclose(exact, np.mean(np.asarray(x) ** 2, 1) / variance**2 - 2 / variance, rtol=1e-4, atol=1e-4)
    assert abs(z_of(exact + 1 / variance)) < 4
    np.testing.assert_allclose(run("sliced"), exact, rtol=1e-4, atol=1e-4)  # isotropic: any v will do


def test_sliced_is_implicit_on_average():
    """Over 20,000 examples, paired: the mean difference within 4 standard errors, which is not 0; their v are their own, whatever the batch."""
    sliced, implicit = (losses(Bent(VP()), name, [0.1, 0.3], 20_000) for name in ("sliced", "implicit"))
    difference = sliced - implicit
    assert np.abs(difference).max() > 1e-2 and abs(z_of(difference)) < 4
    few = losses(Bent(VP()), "sliced", [0.1, 0.3], 16)
    np.testing.assert_allclose(few, sliced[:16], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chain", [DDPM(), NCSN()], ids=["DDPM", "NCSN"])
def test_times_are_the_steps_of_the_chain(chain):
    """Every step once in N even draws, at its own time; a continuous path has none."""
    u = (jnp.arange(chain.N) + 0.5) / chain.N
    t = objectives.steps(u, chain, None)
    np.testing.assert_array_equal(chain.step_of_time(t), np.arange(1, chain.N + 1))
    np.testing.assert_allclose(t, chain.time_of_step(np.arange(1, chain.N + 1)), rtol=1e-6)
    with pytest.raises(ValueError, match="expected sde.name = DDPM or NCSN"):
        objectives.steps(u, VP(), None)


@pytest.mark.parametrize("chain", [DDPM(), NCSN()], ids=["DDPM", "NCSN"])
def test_losses_of_the_chains(chain):
    """mean |eps - eps_hat(x_i, i)|^2 over data, steps and noise (DDPM's eq. 14, SMLD's weighted by sigma_i^2): of the exact score for data N(0, s^2)
    sum_i alpha_i^2 s^2 / (alpha_i^2 s^2 + sigma_i^2) / N. 20,000 examples, seeds 0 and 3; bound 4 standard errors."""
    i = np.arange(1, chain.N + 1)
    alpha, sigma = chain.alpha(chain.time_of_step(i)), chain.sigma(chain.time_of_step(i))
    floor = np.mean((0.5 * alpha) ** 2 / ((0.5 * alpha) ** 2 + sigma**2))
    gm = GaussianMixture(np.zeros((1, 2)), np.array([0.5]))

    @dataclass(frozen=True)
    class Exact(Bent):
        def __call__(self, params, x, t, label=None, example=None, dropout_key=None):
            return gm.denoiser(self.sde).noise(x, t)

    rows = batch(20_000) | {"value": np.asarray(gm.sample(jax.random.key(0), 20_000))}
    found = jax.jit(lambda rows: objectives.loss(Exact(chain), None, PLAIN, objective("regression", time="steps"), jax.random.PRNGKey(3), rows))(rows)
    assert abs(float(found.mean()) - floor) < 4 * float(found.std()) / np.sqrt(20_000), (found.mean(), floor)
