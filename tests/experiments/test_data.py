import gzip
import struct
import urllib.error

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import archives, data, sources
from experiments.toy import TOYS, eight_gaussians_mixture
from samplers import log_likelihood
from sde_lib import GaussianMixture, Linear


def tiny(n=10, levels=17, shift=8.5, scale=8.5, shape=(2, 2, 1)):
    values = np.random.default_rng(0).integers(0, max(levels, 2), (n, *shape)).astype(np.uint8 if levels else np.float32)
    return data.Dataset("tiny", {"train": values, "test": values}, {"train": np.arange(n), "test": np.arange(n)}, shift, scale, levels)


@pytest.mark.parametrize("levels, shift, scale", [(256, 128, 128), (256, 0, 256), (32, 16, 16), (17, 8.5, 8.5), (17, -3.0, 0.7)])
def test_uniform_data_has_log2_levels_bits(levels, shift, scale):
    """Under any affine scaling exactly log2 L bits/dim (score_sde.md, check 5)."""
    d = tiny(levels=levels, shift=shift, scale=scale)
    log_prob = d.dim * (np.log(scale) - np.log(levels))  # the density of x uniform on [-shift, L - shift]/scale
    np.testing.assert_allclose(d.score(np.array([log_prob])), np.log2(levels), rtol=1e-12)


def test_bits_do_not_depend_on_the_scaling(x64):
    """[0, 1) and [-1, 1) with the same model in each: equal bits/dim to 1e-6 (flows.md, check 12)."""
    u = np.random.default_rng(0).uniform(3, 9, (6, 4))
    bits = []
    for shift, scale in ((8.5, 8.5), (0.0, 17.0)):
        d = tiny(shift=shift, scale=scale)
        gm = GaussianMixture((np.full((1, 4), 6.0) - shift) / scale, np.array([2.0 / scale]))
        x = (u - shift) / scale
        bits.append(d.score(log_likelihood(gm.denoiser(Linear()), x, rtol=1e-9, atol=1e-9, eps=1e-8).log_prob))
    np.testing.assert_allclose(bits[0], bits[1], atol=1e-6)
    assert np.abs(tiny(shift=0.0, scale=17.0).score(np.zeros(1)) - tiny(shift=8.5, scale=8.5).score(np.zeros(1))) > 0.9  # control: scales forgotten


def test_values_survive_the_round_trip():
    """Every level, dequantized and scaled, comes back; x fills [-1, 1); the noise belongs to the example."""
    d = tiny(levels=17)
    levels = np.tile(np.arange(17, dtype=np.uint8), (50, 1))
    keys = jax.random.split(jax.random.key(0), 50)
    x = d.to_x(keys, levels)
    np.testing.assert_array_equal(d.from_x(x), levels)
    assert -1 <= float(x.min()) < -0.9 and 0.9 < float(x.max()) < 1
    np.testing.assert_array_equal(d.to_x(keys[3:5], levels[3:5]), x[3:5])
    np.testing.assert_array_equal(d.from_x(jnp.array([[-7.0, 7.0]])), [[0, 16]])


def test_stream_is_a_function_of_position():
    """Starting anywhere gives the batches that come there; each epoch is a permutation, another one each time; grain gives the same, and so do two
    hosts together."""
    d = tiny(n=10)
    source = data.Batches(d, batch=4, seed=3)
    every = [source[k] for k in range(10)]
    np.testing.assert_array_equal(np.concatenate([b["position"] for b in every]), np.arange(40))
    labels = np.concatenate([b["label"] for b in every]).reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in labels) and len({tuple(e) for e in labels}) == 4
    for k, batch in zip(range(6, 10), data.batches(d, 4, 3, start=6)):
        for name in batch:
            np.testing.assert_array_equal(batch[name], every[k][name])
    assert not np.array_equal(data.Batches(d, 4, seed=4)[0]["label"], every[0]["label"])
    shares = [data.Batches(d, 4, 3, host, hosts=2) for host in range(2)]
    for k, batch in enumerate(every):
        for name, whole in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[k][name] for share in shares]), whole)


def test_digits():
    d = data.load(ConfigDict({"name": "digits"}))
    assert d.shape == (8, 8, 1) and d.levels == 17 and len(d.values["train"]) == 1437 and len(d.values["test"]) == 360
    assert d.values["train"].max() == 16 and d.unit == "bits/dim"


@pytest.mark.parametrize("name, variant", [(n, v) for n, (_, variants) in TOYS.items() for v in variants])
def test_toys(name, variant):
    d = data.load(ConfigDict({"name": name, "variant": variant}))
    x = d.to_x(None, d.values["train"])
    assert d.shape == (2,) and d.unit == "nats" and float(jnp.std(x)) == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(d.from_x(x[:5]), d.values["train"][:5], atol=1e-5)


def test_toys_are_the_published_ones():
    """Entropy of ffjord's 8 gaussians is 2.838 nats (100,000 draws, standard error 0.003); its checkerboard fills 32 units of area."""
    d = data.load(ConfigDict({"name": "8gaussians", "variant": "ffjord"}))
    entropy = -eight_gaussians_mixture("ffjord").log_prob(d.values["train"]).mean()
    assert float(entropy) == pytest.approx(2.838, abs=0.012)
    board = data.load(ConfigDict({"name": "checkerboard"})).values["train"]
    cells = np.unique(np.floor(board / 2).astype(int), axis=0)
    assert len(cells) * 4 == 32 and np.abs(board).max() <= 4
    centres = data.load(ConfigDict({"name": "8gaussians", "variant": "torchcfm"})).values["train"]
    assert np.hypot(*centres.T).mean() == pytest.approx(np.hypot(5.0, 0.1**0.25 / np.sqrt(2)), abs=0.05)


def test_fashion_mnist_files(tmp_path, monkeypatch):
    """IDX files are verified, decompressed and parsed; a wrong file and a failed download each end in one clear error."""
    images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    content = struct.pack(">4I", 0x00000803, 2, 3, 3) + images.tobytes()
    monkeypatch.setitem(archives.FASHION_SHA256, "train-images-idx3-ubyte", archives.hashlib.sha256(content).hexdigest())
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(archives._idx("train-images-idx3-ubyte", tmp_path), images)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content + b"x"))
    with pytest.raises(ValueError, match="SHA-256 differs.*delete it"):
        archives._idx("train-images-idx3-ubyte", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="cannot be read"):
        archives._idx("train-images-idx3-ubyte", tmp_path)

    def offline(*args, **kwargs):
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(sources.urllib.request, "urlopen", offline)
    with pytest.raises(FileNotFoundError, match="--config.data.path"):
        archives._idx("t10k-images-idx3-ubyte", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.load(ConfigDict({"name": "fashion_mnist", "path": str(tmp_path / "nowhere")}))


def test_unknown_names_are_refused():
    for config, words in (({"name": "digit"}, "expected one of digits"), ({"name": "moons", "variant": "x"}, "expected one of ffjord, torchcfm")):
        with pytest.raises(ValueError, match=words):
            data.load(ConfigDict(config))
