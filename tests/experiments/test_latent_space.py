"""The command of the latent space, its jobs one after another on a small conditional run: what they write, resume, and refuse."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small import small_config

from experiments import cli, latent, runs
from experiments.kept import Kept
from experiments.train import train

FLAGS = {"split": "test", "num": 12, "batch": 8, "seed": 0, "tolerance": 1e-3, "dequantization": "uniform", "weights": "ema", "workdir": "run"}
FLAGS |= {"latents": None, "other": None, "ends": "examples", "pairs": 4, "frames": 3, "tau": ["0", "0.5", "1"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A conditional run of two steps, and beside it another of another seed."""
    folder = tmp_path_factory.mktemp("latent")
    for seed in (0, 1):
        config = small_config(steps=2)
        config.model.num_classes, config.seed = 10, seed
        train(config, folder / str(seed))
    run = runs.load_run(folder / "0")
    rng = np.random.default_rng(0)  # weights that do something, labels' among them: two steps from zero are few
    return replace(run, params=jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), run.params))


def flags(**chosen):
    return SimpleNamespace(**FLAGS | chosen)


def test_encode_and_decode(run, tmp_path):
    """Latents with their labels decode to the examples again; another label gives others. The gaussianity of 12 draws is that of the prior's."""
    said, arrays, figure, kept = latent.encode_job(run, flags(tolerance=1e-4), tmp_path / "encode")
    assert said["examples"] == 12 and said["nfe"] > 10 and said["round_trip"]["max"] < 0.05 and figure(tmp_path / "figure.png").exists()
    assert json.loads(json.dumps(said))["gaussianity"]["mean_stderr"] == pytest.approx(1 / np.sqrt(12 * 64))
    assert all(part.folder.exists() for part in kept)
    np.testing.assert_array_equal(arrays["label"], run.dataset.labels["test"][:12])
    np.savez(tmp_path / "latents.npz", **arrays)
    chosen = flags(latents=tmp_path / "latents.npz", tolerance=1e-4)
    decoded, samples, figure, _ = latent.decode_job(run, chosen, tmp_path / "decode")
    truth = latent.plots.to_uint8(run.dataset.values["test"][:12], run.dataset.levels)
    assert np.mean(samples["arr_0"] != truth) < 0.03 and figure(tmp_path / "figure.png").exists() and decoded["samples"] == 12
    other = latent.decode(run, arrays["latent"], (arrays["label"] + 1) % 10, 8, 1e-2)["x"]
    assert np.mean(np.abs(other - latent.decode(run, arrays["latent"], arrays["label"], 8, 1e-2)["x"])) > 1e-4
    np.savez(tmp_path / "wrong.npz", latent=arrays["latent"])
    with pytest.raises(ValueError, match="without labels; this run is of .* with labels"):
        latent.decode_job(run, flags(latents=tmp_path / "wrong.npz"), tmp_path / "decode")


def test_interrupted_encoding_goes_on(run, tmp_path):
    """Stopped after the first batch and resumed, or in batches of another size: the same latents. Of middles: others."""

    def interrupt(line, **_):
        raise cli.Stopped(line)

    options = {"split": "test", "num": 12, "seed": 0, "tolerance": 1e-2, "dequantization": "uniform"}
    with pytest.raises(cli.Stopped, match="8/12 examples"):
        latent.encode(run, batch=8, kept=Kept(tmp_path / "a"), progress=interrupt, **options)
    kept = Kept(tmp_path / "a")
    found = latent.encode(run, batch=8, kept=kept, **options)
    np.testing.assert_array_equal(found["latent"], latent.encode(run, batch=8, **options)["latent"])
    np.testing.assert_allclose(found["latent"][:5], latent.encode(run, batch=5, **options | {"num": 5})["latent"], atol=1e-4)
    middle = latent.encode(run, batch=8, **options | {"dequantization": "middle"})
    np.testing.assert_array_equal(middle["x"], run.dataset.middles(run.dataset.values["test"][:12]))
    with pytest.raises(ValueError, match="--num=999: expected 1 to 360"):
        latent.encode(run, batch=8, **options | {"num": 999})


def test_interpolation_and_temperature(run, tmp_path):
    said, arrays, figure, _ = latent.interpolate_job(run, flags(), tmp_path / "interpolate")
    assert arrays["linear"].shape == (4, 3, 8, 8, 1) and figure(tmp_path / "figure.png").exists()
    for kind in ("linear", "spherical"):  # both ends are the examples, given their labels
        ends = latent.plots.to_uint8(run.dataset.values["test"][:8], run.dataset.levels).reshape(4, 2, 8, 8, 1)
        assert np.mean(arrays[kind][:, ::2] != ends) < 0.1
    half, whole = said["length"]["linear"][1], said["length"]["spherical"]
    assert half < 0.9 * min(whole) and max(whole) < 1.1 * min(whole)
    said, arrays, figure, _ = latent.interpolate_job(run, flags(ends="prior"), tmp_path / "prior")
    draws = run.network.sde.prior_sample(jax.random.key(0), (8, 8, 8, 1))
    np.testing.assert_array_equal(arrays["latent"][0, :, 0], draws[::2])
    said, arrays, figure, _ = latent.temperature_job(run, flags(), tmp_path / "temperature")
    assert arrays["arr_0"].shape == (3, 12, 8, 8, 1) and figure(tmp_path / "figure.png").exists()
    assert said["deviation"][0] < said["deviation"][1] < said["deviation"][2]  # of tau = 0: that of the labels alone
    with pytest.raises(ValueError, match="--tau=0.5,hot: expected numbers"):
        latent.temperature_job(run, flags(tau=["0.5", "hot"]), tmp_path / "temperature")


def test_identifiability(run, tmp_path):
    """Two runs of two steps, both hardly more than x itself, encode alike; the very same weights are refused."""
    said, _, figure, _ = latent.identifiability_job(run, flags(other=run.workdir.parent / "1"), tmp_path / "same")
    found = said["agreement"]
    assert figure(tmp_path / "figure.png").exists() and found["same"]["correlation_mean"] > found["shuffled"]["correlation_mean"] + 0.2
    assert found["random"]["difference_mean"] == pytest.approx(2 / np.sqrt(np.pi), abs=4 * 0.853 / np.sqrt(12 * 64))
    assert found["same"]["difference_mean"] < 0.7 * found["shuffled"]["difference_mean"]
    with pytest.raises(ValueError, match="the very weights of --workdir"):
        latent.identifiability_job(runs.load_run(run.workdir), flags(other=run.workdir), tmp_path / "same")


def test_figures_of_known_latents():
    """gaussianity and agreement of draws N(0, 1), n = 400, d = 8, within four standard errors; of uniform and of correlated ones, by their
    closed forms. Seed 0."""
    rng = np.random.default_rng(0)
    a, noise = rng.standard_normal((2, 400, 8))
    found = latent.gaussianity(a)
    for name, want, stderr in (("mean", 0, "mean_stderr"), ("std", 1, "std_stderr"), ("kurtosis_excess", 0, "kurtosis_stderr")):
        assert abs(found[name] - want) < 4 * found[stderr]
    assert found["ks"] < found["ks_level_5_percent"] and found["coordinates_passing_ks_at_5_percent"] >= 0.75
    uniform = latent.gaussianity(rng.uniform(-np.sqrt(3), np.sqrt(3), (400, 8)))
    assert uniform["kurtosis_excess"] == pytest.approx(-1.2, abs=0.1) and uniform["ks"] > uniform["ks_level_5_percent"]
    found = latent.agreement(a, 0.8 * a + 0.6 * noise, 0)  # correlation 0.8, difference N(0, 0.4)
    assert found["same"]["correlation_mean"] == pytest.approx(0.8, abs=4 * 0.36 / np.sqrt(3200))
    assert found["same"]["difference_mean"] == pytest.approx(np.sqrt(0.4 * 2 / np.pi), abs=4 * 0.38 / np.sqrt(3200))
    assert abs(found["shuffled"]["correlation_mean"]) < 4 / np.sqrt(3200)
    exact = latent.agreement(a, a, 0)["same"]
    assert exact["difference_mean"] == 0 and exact["correlation_least"] == pytest.approx(1)
