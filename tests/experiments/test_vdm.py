"""Training on the variational bound with a learned schedule, on an exact denoiser of N(0, 0.25); float32, fixed seeds."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import integrate

from experiments import network, objectives, vdm
from experiments.data import Dataset
from experiments.likelihood import score
from models.schedule import Schedule
from sde_lib import SDE, GaussianMixture, Trig

GM = GaussianMixture(np.zeros((1, 1)), np.array([0.5]))
DATA = Dataset("normal", {"train": np.zeros((1, 1))}, {}, 0.0, 1.0)
OBJECTIVE = ConfigDict({"time": {"name": "uniform"}, "label_dropout": 0.0})
ENTROPY = 0.5 * np.log(2 * np.pi * np.e * 0.25)


@dataclass(frozen=True)
class Exact:
    sde: SDE = Trig()
    kind: str = "v"
    sigma_data: float = 1.0
    schedule: Schedule = Schedule(5.0, -5.0, width=32)
    none = None

    def __call__(self, params, x, t, label=None, example=None, dropout_key=None):
        return GM.denoiser(self.sde).v(x, t)


NET = Exact()
PARAMS = {"schedule": NET.schedule.init(jax.random.key(0), jnp.ones(1))["params"]}


def batch(n, start=0):
    x = 0.5 * np.random.default_rng(start).standard_normal((n, 1))
    return {"value": x.astype(np.float32), "label": np.zeros(n, np.int32), "position": np.arange(start, start + n, dtype=np.uint32)}


loss = jax.jit(lambda params, batch: objectives.loss(NET, params, DATA, OBJECTIVE, jax.random.PRNGKey(0), batch))


def test_the_bound_is_the_entropy():
    """Of an exact denoiser, in the mean over 400,000 examples, to 4 standard errors (0.06) and the 1e-3 of the ends at log-SNR +-5."""
    found = loss(PARAMS, batch(400_000))
    error = float(found.std()) / np.sqrt(400_000)
    assert error < 0.02 and abs(float(found.mean()) - ENTROPY) < 4 * error + 1e-3


def test_the_bound_of_levels_is_that_of_the_sampler():
    """On 17 levels, in bits, over 200,000 examples: the mean of `samplers.variational_bound` between the same ends, to 4 standard errors of both; by
    the command's function the same, as the ends are the run's own."""
    values = np.clip(np.floor(8.5 * batch(4000)["value"] + 8.5), 0, 16).astype(np.uint8)
    labels = np.zeros(4000, np.int32)
    data = Dataset("levels", {"train": values, "test": values}, {"train": labels, "test": labels}, 8.5, 8.5, 17)
    many = {"value": np.tile(values, (50, 1)), "label": np.tile(labels, 50), "position": np.arange(200_000, dtype=np.uint32)}
    found = jax.jit(lambda b: objectives.loss(NET, PARAMS, data, OBJECTIVE, jax.random.PRNGKey(0), b))(many)
    ends = network.Network.ends(NET, PARAMS)
    assert np.allclose(ends, [np.arctan(np.exp(-5.0)), np.arctan(np.exp(5.0))])
    net = SimpleNamespace(sde=NET.sde, schedule=NET.schedule, ends=lambda params: ends)
    run = SimpleNamespace(dataset=data, conditional=False, denoiser=lambda label: GM.denoiser(NET.sde), network=net, fingerprint=str, params=PARAMS)
    want = score(run, "test", 0, 4000, 0, bound="variational", times=256, progress=lambda *_, **__: None)["score"]
    error = float(np.hypot(found.std() / np.sqrt(200_000), want.std() / np.sqrt(4000)))
    assert error < 0.05 and abs(float(found.mean()) - want.mean()) < 4 * error


def test_schedule_rises_from_0_to_1():
    for seed in range(3):
        params = Schedule(5.0, -5.0).init(jax.random.key(seed), jnp.ones(1))
        come = Schedule(5.0, -5.0).apply(params, jnp.linspace(0, 1, 101))
        np.testing.assert_allclose(come[jnp.array([0, -1])], [0, 1], atol=1e-6)
        assert np.all(np.diff(come) > 0) and np.all(params["params"]["ends"] == jnp.array([5.0, -5.0]))


def test_derivatives_are_those_of_the_mean_and_of_the_square():
    fn = lambda a, s: jnp.sin(a * s[0]) + s[1] ** 2
    a, s = jnp.float32(0.7), (jnp.linspace(0.1, 1.0, 5), jnp.linspace(1.0, 2.0, 5))
    found = jax.grad(lambda a, s: vdm.least_variance(fn)(a, s).mean(), (0, 1))(a, s)
    np.testing.assert_allclose(found[0], jax.grad(lambda a: fn(a, s).mean())(a), rtol=1e-5)
    np.testing.assert_allclose(found[1], jax.grad(lambda s: (fn(a, s) ** 2).mean())(s), rtol=1e-5)


@pytest.mark.slow
def test_a_trained_schedule_has_less_variance_and_the_same_mean():
    r"""With r = E error^2 at a log-SNR, and error^2 / r of chi-square law, the estimate's least variance is 2 (\int r)^2 (s' in proportion to r), and
    that of even log-SNRs 30 \int r^2 - (\int r)^2. 200 steps of Adam on the schedule's interior leave half of the excess; the mean stays."""
    log_snr = np.linspace(-5, 5, 2001)
    alpha2 = 1 / (1 + np.exp(-2 * log_snr))
    r = 0.25 * alpha2 / (0.25 * alpha2 + 1 - alpha2)
    mean, square = integrate.trapezoid(r, log_snr), integrate.trapezoid(r**2, log_snr)
    least, even = 2 * mean**2, 30 * square - mean**2
    optimizer = optax.adam(0.03)

    @jax.jit
    def update(params, state, batch):
        grads = jax.grad(lambda p: loss(p, batch).mean())(params)
        grads["schedule"]["ends"] = jnp.zeros(2)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for k in range(200):
        params, state = update(params, state, batch(256, 256 * k))
    before, after = (loss(p, batch(20_000, 60_000)) for p in (PARAMS, params))
    assert float(before.var()) == pytest.approx(even, rel=0.1) and 0.9 * least < float(after.var()) < 0.5 * (least + even)
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=4 * float(before.std()) / np.sqrt(20_000))


def test_ends_move_to_where_the_bound_is_best():
    """At a last log-SNR of -1/2 the bound's slope in it is that of the prior's term less r = E error^2; at the first, where the decoder's is -1 and
    r nearly 1, nothing is left. 200,000 examples; bound some 4 standard errors."""
    far = {"schedule": {**PARAMS["schedule"], "ends": jnp.array([5.0, -0.5])}}
    slope = jax.grad(lambda p: loss(p, batch(200_000)).mean())(far)["schedule"]["ends"]
    alpha2 = 1 / (1 + np.e)
    prior = alpha2 * (1 - alpha2) * (0.25 - 1 + 1 / (1 - alpha2))
    assert float(slope[1]) == pytest.approx(prior - 0.25 * alpha2 / (0.25 * alpha2 + 1 - alpha2), abs=0.01)
    assert float(slope[0]) == pytest.approx(0, abs=0.02)
