"""Times by importance: the density that is converged to, an unbiased gradient of less variance, and a history that resumes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import small_config

from experiments import cli, drift, importance, objectives, state
from experiments.data import Dataset
from experiments.train import train
from sde_lib import SDE, VP, GaussianMixture

NORMAL = Dataset("normal", {}, {}, 0.0, 1.0)
GM = GaussianMixture(np.zeros((1, 1)), np.array([0.5]))
OBJECTIVE = ConfigDict({"loss": "regression", "weighting": "own", "time": {"name": "importance"}})


def remaining(sde, t):
    """Var[eps | x_t] of data N(0, 0.25)."""
    return (0.5 * sde.alpha(t)) ** 2 / ((0.5 * sde.alpha(t)) ** 2 + sde.sigma(t) ** 2)


@dataclass(frozen=True)
class Bent:
    """The exact noise, off by `bend` standard deviations of what is left to predict."""

    sde: SDE = VP()
    kind: str = "noise"
    sigma_data: float = 0.5
    schedule: None = None
    interpolant: None = None
    none = None

    def __call__(self, bend, x, t, label=None, example=None, dropout_key=None):
        return GM.denoiser(self.sde).noise(x, t) + bend * jnp.sqrt(remaining(self.sde, t))[:, None]


def batch(n, start=0):
    x = 0.5 * np.random.default_rng(start).standard_normal((n, 1))
    return {"value": x.astype(np.float32), "label": np.zeros(n, np.int32), "position": np.arange(start, start + n, dtype=np.uint32)}


def losses(bend, history, rows):
    """Weighted, and as they are, with the moved u."""
    key = jax.random.PRNGKey(0)
    u, weight = importance.draw(history, objectives.uniforms(key, rows["position"]))
    each = objectives.loss(Bent(), bend, NORMAL, OBJECTIVE, key, rows, objectives.Given(u=u))
    return weight * each, each, u


@pytest.fixture(scope="module")
def learned():
    """After 100 batches of 4096."""
    step = jax.jit(lambda history, rows: importance.update(history, importance.tally(*losses(0.0, history, rows)[:0:-1])))
    history = importance.new()
    for k in range(100):
        history = step(history, batch(4096, 4096 * k))
    return history


def test_density_is_that_of_the_root_mean_square_loss(learned):
    """Here sqrt(E[L^2]) = sqrt(3) Var[eps | x_t], of each bin by quadrature. Total variation; batches of seeds 0 to 99.

    A bin's mean square is of about 800 fading losses of relative variance 96/9 (chi-squared), its root is off by 0.06: expected are 0.025.
    """
    sde = VP()
    t = sde.eps + (np.arange(importance.BINS * 50) + 0.5) / (importance.BINS * 50) * (1 - sde.eps)
    root = np.sqrt(np.mean((remaining(sde, t) ** 2).reshape(importance.BINS, 50), 1))
    want = (1 - importance.UNIFORM) * root / root.sum() + importance.UNIFORM / importance.BINS
    off = lambda p: 0.5 * np.abs(p - want).sum()
    assert off(np.asarray(importance.density(learned))) < 0.05 < 0.4 < off(np.full(importance.BINS, 1 / importance.BINS))


def test_gradient_is_unbiased_and_of_less_variance(learned):
    """By the bend at 0.3, of 400,000 examples: means agree within 4 standard errors, but not if losses count 1; the variance halves or better."""
    rows = batch(400_000, 7_000_000)
    slope = jax.jit(lambda history, k: jax.jvp(lambda a: losses(a, history, rows)[k], (0.3,), (1.0,))[1], static_argnums=1)
    ours, uniform, biased = (np.asarray(slope(*case), np.float64) for case in ((learned, 0), (importance.new(), 0), (learned, 1)))
    error = np.sqrt((ours.var() + uniform.var()) / len(ours))
    assert abs(ours.mean() - uniform.mean()) < 4 * error < abs(biased.mean() - uniform.mean())
    assert ours.var() < 0.5 * uniform.var()


def test_draw_is_the_inverse_of_the_density(learned):
    """u lands in bin k with probability p_k, evenly within it and in order; every loss counts 1/(K p_k), 1 in the mean."""
    u = (jnp.arange(100_000) + 0.5) / 100_000
    moved, weight = importance.draw(learned, u)
    p = np.asarray(importance.density(learned))
    found = np.bincount(np.floor(np.asarray(moved) * importance.BINS).astype(int).clip(0, importance.BINS - 1), minlength=importance.BINS)
    np.testing.assert_allclose(found / len(u), p, atol=3e-5)
    assert np.all(np.diff(moved) >= 0) and p.sum() == pytest.approx(1) and float(weight.mean()) == pytest.approx(1, abs=1e-2)
    np.testing.assert_allclose(importance.draw(importance.new(), u)[0], u, atol=1e-6)


def trained(folder, time="importance", **training):
    config = small_config(**training)
    config.objective.time.name = time
    return train(config, folder)


@pytest.mark.slow
def test_training_resumes(tmp_path, monkeypatch):
    """4 steps and 2 are 6 to the last bit, history included; to leave importance, or to begin with it, on resume is refused."""
    monkeypatch.setattr(importance, "WARM", 0)
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", steps=4)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(trained(tmp_path / "parts")), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(whole.history.count.sum()) == 96 and np.ptp(importance.density(whole.history)) > 0
    with pytest.raises(ValueError, match="objective.time.name: importance -> uniform .the saved state does not fit"):
        trained(tmp_path / "whole", "uniform")
    before = cli.flat(small_config())
    assert drift.drifted(before, before | {"objective.time.name": "importance"}, True) == {"objective.time.name": drift.STATE}
    config = small_config()
    config.objective.loss = "autoencoder"
    config.objective.time.name = "importance"
    with pytest.raises(ValueError, match="'importance': loss 'autoencoder' has no such times"):
        state.init(config, None, (1,))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"accumulate": 2}, {"sharding": "fsdp"}], ids=str)
def test_parts_and_shards_train_alike(tmp_path, monkeypatch, options):
    """The same state but for rounding, history included."""
    monkeypatch.setattr(importance, "WARM", 0)
    whole, other = trained(tmp_path / "whole", steps=3), trained(tmp_path / "other", steps=3, **options)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
