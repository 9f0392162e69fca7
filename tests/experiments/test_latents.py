"""Latent models: the autoencoder's loss, a data set encoded once, training and sampling in latents."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.integrate import quad
from scipy.stats import norm
from small import save_random

from configs import default
from experiments import autoencode, autoencoder, data, export, guidance, network, objectives, runs, sample
from experiments.train import train

OPTIONS = {"solver": "ddim", "steps": 3, "grid": "log_snr", "tolerance": 1e-3}


def autoencoder_config(**training):
    """8x8x1 digits to latents 4x4x2, a second to compile."""
    config = default.get_config()
    config.model.update(name="KLAutoencoder", channels=8, multipliers=(1,), blocks=1, latent_channels=2, image_channels=1, patch=2)
    config.objective.update(loss="autoencoder", kl=0.1)
    config.optim.update(warmup=0, learning_rate=5e-3)
    config.training.update({"batch": 16, "steps": 8, "log_every": 2, "checkpoint_every": 100, **training})
    return config


def latent_config(path):
    config = default.get_config()
    config.data.update(name="latents", path=str(path))
    config.model.update(name="ResidualMLP", width=16, depth=1, num_classes=10)
    config.objective.label_dropout = 0.5
    config.training.update(batch=16, steps=8)
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An autoencoder, the latents of 100 digits of each split, mirrored ones too, and a model of these."""
    folder = tmp_path_factory.mktemp("latent")
    save_random(autoencoder_config(), folder / "ae")
    run = runs.load_run(folder / "ae")
    autoencode.encode(run, run.config.data, folder / "latents", batch=64, flip=True, limit=100)
    save_random(latent_config(folder / "latents"), folder / "model")
    return folder


def test_kl_is_the_integral():
    """Of three Gaussians to N(0, 1), against quadrature; their sum over dimensions; 0 for N(0, I) itself."""
    mean, std = np.array([0.3, -1.2, 2.0]), np.array([0.5, 1.5, 0.1])
    integrals = [quad(lambda z, q=norm(m, s): q.pdf(z) * (q.logpdf(z) - norm.logpdf(z)), m - 12 * s, m + 12 * s)[0] for m, s in zip(mean, std)]
    got = autoencoder.kl_divergence(jnp.asarray(mean)[:, None], 2 * jnp.log(jnp.asarray(std))[:, None])
    np.testing.assert_allclose(got, integrals, rtol=1e-5)
    together = autoencoder.kl_divergence(jnp.asarray(mean).reshape(1, 3, 1), 2 * jnp.log(jnp.asarray(std)).reshape(1, 3, 1))
    np.testing.assert_allclose(together, sum(integrals), rtol=1e-5)
    assert not np.any(autoencoder.kl_divergence(jnp.zeros((2, 3)), jnp.zeros((2, 3))))


@pytest.mark.parametrize("reconstruction", ["l1", pytest.param("l2", marks=pytest.mark.slow)])
def test_loss(folders, reconstruction):
    """The mean error of a draw plus the weighted divergence for each pixel; an example's depends on its position, not on its batch."""
    run = runs.load_run(folders / "ae")
    objective = run.config.objective
    objective.reconstruction = reconstruction
    batch = {"value": run.dataset.values["train"][:4], "position": np.arange(7, 11, dtype=np.uint32), "label": np.zeros(4, np.int32)}
    key = jax.random.key(0)
    loss = jax.jit(lambda batch: objectives.loss(run.network, run.params, run.dataset, objective, key, batch))
    whole = loss(batch)
    np.testing.assert_allclose(loss({name: a[2:] for name, a in batch.items()}), whole[2:], rtol=1e-5)
    x = run.dataset.middles(batch["value"])
    mean, std = jnp.split(jax.jit(run.network.encode)(run.params, x), 2, -1)
    noise = jax.vmap(lambda p: jax.random.normal(jax.random.fold_in(key, p), mean.shape[1:]))(batch["position"])
    error = np.asarray(x - jax.jit(run.network.decode)(run.params, mean + std * noise), np.float64)
    error = (np.abs(error) if reconstruction == "l1" else error**2).mean((1, 2, 3))
    divergence = np.asarray(0.5 * (mean**2 + std**2 - 1) - jnp.log(std)).sum((1, 2, 3))
    assert np.all(objective.kl * divergence / 64 > 1e-3 * error)  # seen at the tolerance below
    np.testing.assert_allclose(whole, error + objective.kl * divergence / 64, rtol=1e-5)


@pytest.mark.slow
def test_an_autoencoder_learns_and_resumes(tmp_path):
    """The error falls; a run in two parts ends bit-identically."""
    whole = train(autoencoder_config(steps=60), tmp_path / "whole")
    losses = [json.loads(line)["loss"] for line in open(tmp_path / "whole" / "log.jsonl")]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    train(autoencoder_config(steps=30), tmp_path / "parts")
    parts = train(autoencoder_config(steps=60), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.slow
def test_latents_are_the_autoencoders(folders, tmp_path):
    """Moments of the images and of their mirror images, whatever the batch; the scale is the standard deviation of draws (6400 numbers: 3 %)."""
    run = runs.load_run(folders / "ae")
    latents = runs.load_run(folders / "model").dataset
    images = run.dataset.values["train"][:100]
    values = latents.values["train"]
    assert values.shape == (200, 4, 4, 4) and latents.shape == (4, 4, 2) and latents.values["test"].shape == (100, 4, 4, 4)
    encode = jax.jit(run.network.encode)
    for found, given in ((values[:100], images), (values[100:], images[:, :, ::-1])):
        np.testing.assert_allclose(found, encode(run.params, run.dataset.middles(given)), atol=1e-5)
    np.testing.assert_array_equal(latents.labels["train"], np.tile(run.dataset.labels["train"][:100], 2))
    autoencode.encode(run, run.config.data, tmp_path / "again", batch=7, limit=100)
    again = data.load(ConfigDict({"name": "latents", "path": str(tmp_path / "again")}))
    np.testing.assert_allclose(again.values["train"], values[:100], atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 200)
    x = latents.to_x(keys, values)
    assert float(x.std()) == pytest.approx(1, abs=0.03)
    np.testing.assert_array_equal(latents.to_x(keys[5:7], values[5:7]), x[5:7])
    mean, std = np.split(values, 2, -1)
    z = (np.asarray(x) * latents.scale - mean) / std
    assert abs(z.mean()) < 4 / np.sqrt(z.size) and abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)  # 4 standard errors


@pytest.mark.slow
def test_samples_are_images(folders):
    """x decodes to levels, as by hand and whatever stands before the last axes; samples of a latent run are images; guidance is of
    every channel."""
    run, ae = runs.load_run(folders / "model"), runs.load_run(folders / "ae")
    decode = jax.jit(ae.network.decode)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    by_hand = ae.dataset.from_x(decode(ae.params, x.reshape(6, 4, 4, 2) * run.dataset.scale))
    np.testing.assert_array_equal(run.dataset.from_x(x), by_hand.reshape(2, 3, 8, 8, 1))
    np.testing.assert_allclose(data.load(run.config.data).from_x(x), x * run.dataset.scale, rtol=1e-6)  # no decoder
    values, _ = sample.generate(run, 5, 8, 0, guidance=2.0, **OPTIONS)
    assert values.shape == (5, 8, 8, 1) and values.dtype == np.uint8 and values.max() <= 16
    assert data.reference(run.dataset).shape == (8, 8, 1) and len(data.reference(run.dataset).values["test"]) == 360
    label, t = jnp.array([3]), jnp.array([0.5])
    raw = lambda label, omega: jax.jit(lambda label: guidance.guide(run, omega).denoiser(label).raw(x[0, :1], t))(label)
    some, none = raw(label, 1.0), raw(jnp.array([10]), 1.0)
    np.testing.assert_allclose(raw(label, 3.0), none + 3 * (some - none), atol=1e-5)
    assert np.all(jnp.abs(some - none).max((0, 1, 2)) > 0)


@pytest.mark.slow
def test_exports_are_decoded(folders, tmp_path):
    """An export gives the same images where the latents are missing; pictures are of images."""
    run = runs.load_run(folders / "model")
    values, _ = sample.generate(run, 5, 8, 0, guidance=2.0, **OPTIONS)
    files = sample.pictures(replace(run, workdir=tmp_path), values, "ddim", 0, **OPTIONS)
    assert len(files) == 2 and all(file.exists() for file in files)
    export.write(folders / "model", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["data"]["path"] = "/nowhere"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(sample.generate(runs.load_run(tmp_path / "out"), 5, 8, 0, guidance=2.0, **OPTIONS)[0], values)


def test_mistakes_are_named(folders, tmp_path):
    run = runs.load_run(folders / "ae")
    encode = lambda out="new", **options: autoencode.encode(run, run.config.data, tmp_path / out, 64, limit=8, **options)
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken exists"):
        encode("taken")
    with pytest.raises(ValueError, match="--scale=-1.0"):
        encode(scale=-1.0)
    with pytest.raises(ValueError, match="8gaussians.*no images"):
        autoencode.encode(run, ConfigDict({"name": "8gaussians"}), tmp_path / "new", 64)
    with pytest.raises(FileNotFoundError, match="made by python -m experiments.autoencode"):
        data.load(ConfigDict({"name": "latents", "path": str(tmp_path)}))
    with pytest.raises(ValueError, match="pass --flip"):
        data.load(ConfigDict({"name": "latents", "path": str(folders / "latents"), "flip": True}))
    for key, value, words in (("name", "UNet", "expected one of KLAutoencoder"), ("chanels", 3, "did you mean channels")):
        config = autoencoder_config()
        config.model = config.model.to_dict() | {key: value}
        with pytest.raises(ValueError, match=words):
            network.from_config(config, 10)
    config = autoencoder_config()
    config.objective.reconstruction = "l3"
    with pytest.raises(ValueError, match="'l3': expected l1 or l2"):
        network.from_config(config, 10)
    assert encode(scale=2.0)["scale"] == 2.0
    file = tmp_path / "new" / "latents.json"
    about = json.loads(file.read_text())
    for change, words in (
        ({"shape": [4, 4, 3]}, "is damaged.*for latents"),
        ({"scale": 0.0}, "is damaged.*the scale 0.0"),
        ({"images": {}}, "is damaged.*num_classes"),
    ):
        file.write_text(json.dumps(about | change))
        data._latents.cache_clear()
        with pytest.raises(ValueError, match=words):
            data.load(ConfigDict({"name": "latents", "path": str(tmp_path / "new")}))
    latents = data.load(ConfigDict({"name": "latents", "path": str(folders / "latents")}))
    for change, error, words in (
        ({"sha256": "0"}, ValueError, "is another than they were encoded with"),
        ({"autoencoder": "/nowhere"}, FileNotFoundError, "/nowhere .*is missing"),
    ):
        with pytest.raises(error, match=words):
            runs.decoder(replace(latents, about=latents.about | change))


@pytest.mark.slow
def test_commands(folders, tmp_path):
    """Training in latents resumes bit-identically; sampling and evaluation write images and distances to the images; an autoencoder is no run that
    can be sampled."""
    command = lambda name, *words: subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *words], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    whole = train(latent_config(folders / "latents"), tmp_path / "whole")
    config = latent_config(folders / "latents")
    config.training.steps = 3
    train(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, train(latent_config(folders / "latents"), tmp_path / "parts"))
    done = command("evaluate", f"--workdir={folders / 'model'}", "--steps=2", "--groups=2", "--limit=40", "--guidance=2")
    assert done.returncode == 0 and "sliced W2" in done.stdout, done.stderr
    assert (folders / "model" / "eval" / "samples_and_data.png").exists()
    done = command("likelihood", f"--workdir={folders / 'model'}", "--num=3", "--rtol=0.1", "--atol=0.1")
    assert done.returncode == 0 and "nats" in done.stdout, done.stderr
    done = command("sample", f"--workdir={folders / 'ae'}")
    assert done.returncode == 1 and "is an autoencoder" in done.stderr and "Traceback" not in done.stderr
    done = command("autoencode", f"--workdir={folders / 'model'}", f"--out={tmp_path / 'x'}")
    assert done.returncode == 1 and "is no autoencoder" in done.stderr and "Traceback" not in done.stderr
