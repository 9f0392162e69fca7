"""Scores of discrete data against the exact probabilities of levels, with a model that knows the density; float32, fixed seeds."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from configs import default
from experiments import network, parallel, state
from experiments.data import Dataset, batches
from experiments.dequantization import fit, save
from experiments.kept import Kept
from experiments.likelihood import score, summarize
from samplers import log_likelihood
from sde_lib import GaussianMixture, Linear

NETWORK = SimpleNamespace(sde=Linear(), schedule=None, ends=lambda params: (Linear.eps, Linear.T))
N, OPTIONS = 512, {"rtol": 1e-3, "atol": 1e-3}


def gaussian_of_levels(n: int = N, mean: float = 8.5, std: float = 1.0) -> tuple[SimpleNamespace, float]:
    """A model of u ~ N(mean, std^2) on levels floor(u) of 17, n of them at quantiles of u; and the entropy of a level in bits."""
    u = stats.norm.ppf((np.arange(n) + 0.5) / n, mean, std)
    values = np.floor(u)[:, None].astype(np.uint8)
    labels = {"train": np.zeros(n, np.int32), "test": np.zeros(n, np.int32)}
    data = Dataset("levels", {"train": values, "test": values}, labels, shift=8.5, scale=8.5, levels=17)
    den = GaussianMixture(np.full((1, 1), (mean - 8.5) / 8.5), np.array([std / 8.5])).denoiser(Linear())
    run = SimpleNamespace(
        weights="ema", step=0, dataset=data, conditional=False, denoiser=lambda label: den, network=NETWORK, fingerprint=str, params=None
    )
    p = np.diff(stats.norm.cdf(np.arange(18), mean, std))
    return run, float(-np.sum(p[p > 0] * np.log2(p[p > 0])))


@pytest.mark.slow
def test_dequantization_gap():
    """sigma = 1 level: the entropy is 2.1048 bits, its uniform bound 2.1673 (tables_and_likelihood.md, point 8), by 16 draws to 4 standard errors and
    .005 for the 512 quantiles; importance weights of 16 draws come within .01 of the entropy, from above."""
    run, entropy = gaussian_of_levels()
    assert entropy == pytest.approx(2.1048, abs=1e-4)
    options = {"batch": N, "seed": 0, "draws": 16, "progress": lambda *_, **__: None, **OPTIONS}
    mean = summarize(run, score(run, "test", 0, **options))
    assert mean["mean"] == pytest.approx(2.1673, abs=0.005 + 4 * mean["stderr_draws"]) and mean["stderr_draws"] < 0.01
    importance = summarize(run, score(run, "test", 0, bound="importance", **options))["mean"]
    assert entropy - 0.005 < importance < entropy + 0.01
    truncated = score(run, "test", 0, dequantization="truncated_normal", **options)
    assert entropy < truncated["score"].mean() and np.all(truncated["truncation"] == 0)
    nearer = score(run, "test", 0, dequantization="truncated_normal", bound="importance", **options)["score"].mean()
    assert entropy - 0.005 < nearer < truncated["score"].mean()


@pytest.mark.slow
def test_variational_dequantization_closes_the_gap(tmp_path):
    """sigma = half a level: the entropy is 1.2454 bits, the uniform bound 1.5123 (point 8). A fitted flow leaves less than a tenth of the gap (512
    quantiles, 16 draws, standard error .003), and never a bound below the entropy; a flow that was not trained is uniform."""
    run, entropy = gaussian_of_levels(mean=8.37, std=0.5)
    run.workdir = tmp_path
    assert entropy == pytest.approx(1.2454, abs=1e-4)
    options = {"batch": N, "seed": 0, "draws": 16, "progress": lambda *_, **__: None, **OPTIONS}
    bits = lambda **more: score(run, "test", 0, **options, **more)["score"].mean()
    with pytest.raises(FileNotFoundError, match="fit it with python -m experiments.dequantization"):
        bits(dequantization="variational")
    for steps, low, high in ((1, 1.50, 1.53), (500, entropy - 0.005, entropy + 0.027)):
        params = fit(run, steps=steps, learning_rate=1e-2 if steps > 1 else 1e-9, progress=lambda *_, **__: None)
        save(run, params)
        assert low < bits(dequantization="variational") < high
    assert entropy - 0.005 < bits(dequantization="variational", bound="importance") < entropy + 0.01
    (tmp_path / "dequantization.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="make it again with python -m experiments.dequantization"):
        bits(dequantization="variational")


@pytest.mark.slow
def test_an_interrupted_score_goes_on(tmp_path):
    """Interrupted after its first batch and run again, in other batches, it scores the rest, and the same as without; with other settings all."""
    run, _ = gaussian_of_levels(40)
    whole = score(run, "test", 0, 40, 0, progress=lambda *_, **__: None, **OPTIONS)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(run, "test", 0, 16, 0, kept=Kept(tmp_path / "a"), progress=interrupt, **OPTIONS)
    said = []
    again = score(run, "test", 0, 40, 0, kept=Kept(tmp_path / "a"), progress=lambda line, **_: said.append(line), **OPTIONS)
    assert said[0] == "16 examples were kept" and len(said) == 2
    for name, value in whole.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-5, atol=2e-6)
    score(run, "test", 0, 40, 1, kept=Kept(tmp_path / "a"), progress=lambda line, **_: said.append(line), **OPTIONS)
    assert len(said) == 3
    assert len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.rglob("*.npz"):
        file.write_bytes(b"damaged")
    np.testing.assert_array_equal(
        score(run, "test", 0, 40, 0, kept=Kept(tmp_path / "a"), progress=lambda *_, **__: None, **OPTIONS)["score"], whole["score"]
    )


def test_the_variational_bound_of_levels():
    """Above the entropy, and known to .02: the model is of u, not of middles, which costs 0.06 bits as the uniform bound does, and more."""
    run, entropy = gaussian_of_levels()
    found = summarize(run, score(run, "test", 0, N, 0, bound="variational", times=128, progress=lambda *_, **__: None))
    assert found["mean"] > entropy - 3 * found["stderr_probes"] and found["stderr_probes"] < 0.03 and found["nfe_mean"] == 128


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_of_a_trained_model_integrates_to_one(dim):
    """exp(log p) over a grid, of a network after 300 steps of flow matching on a mixture: 1 +- 1e-3, and near the data's density: a Kullback-Leibler
    divergence below 0.1 nats (0.03 on the seed)."""
    gm = GaussianMixture(np.array([[-1.0, 0.5], [1.0, -0.5], [0.5, 1.0]])[:, :dim], np.array([0.3, 0.4, 0.5]))
    values = np.asarray(gm.sample(jax.random.key(0), 20_000))
    data = Dataset("mixture", {"train": values, "test": values}, {"train": np.zeros(20_000, np.int32)}, 0.0, 1.0)
    config = default.get_config()
    config.model.update(width=64, depth=2)
    config.optim.update(learning_rate=5e-3, ema=0.98)
    net = network.from_config(config, 0)
    current, step = state.init(config, net, data.shape), parallel.parallel_step(state.make_step(config, net, data))
    for _, batch in zip(range(300), batches(data, 256, 0)):
        current, _ = step(current, batch)
    side = 256 if dim == 1 else 72
    line = (np.arange(side) + 0.5) * 8 / side - 4
    grid = np.stack(np.meshgrid(*[line] * dim), -1).reshape(-1, dim).astype(np.float32)
    log_p = np.asarray(log_likelihood(net.denoiser(current.ema), grid, rtol=1e-4, atol=1e-4).log_prob, np.float64)
    cell = (8 / side) ** dim
    assert np.exp(log_p).sum() * cell == pytest.approx(1.0, abs=1e-3)
    true = np.asarray(gm.log_prob(grid), np.float64)
    assert -1e-3 < np.sum(np.exp(true) * (true - log_p)) * cell < 0.1


def test_mistakes_are_named():
    run, _ = gaussian_of_levels(4)
    for options, words in (
        ({"draws": 0}, "at least 1"),
        ({"bound": "importance"}, "two or more draws"),
        ({"bound": "importance", "draws": 4, "divergence": "hutchinson"}, "pass --divergence=exact"),
    ):
        with pytest.raises(ValueError, match=words):
            score(run, "test", 0, 4, 0, **options)
    for options in ({"bound": "means"}, {"dequantization": "none"}):
        with pytest.raises(ValueError, match="expected"):
            score(run, "test", 0, 4, 0, **options)
    run.dataset = replace(run.dataset, levels=0)
    with pytest.raises(ValueError, match="are continuous"):
        score(run, "test", 0, 4, 0, dequantization="truncated_normal")
