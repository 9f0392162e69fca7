"""Inception's weights and its view of an image; the whole network is compared with its peers in test_inception_peers.py."""

import pickle

import jax
import numpy as np
import pytest

from experiments import inception
from models.inception import Inception, interpolation, prepare

RNG = np.random.default_rng(0)
OF_TORCH, OF_JAX = ("weight", "bias", "running_mean", "running_var"), ("scale", "bias", "mean", "var")


@pytest.fixture(scope="module")
def public():
    """Random arrays under the names and in the layouts of PyTorch's file, and of jax-fid's."""
    torch, jax_fid = {}, {}
    for name, shape in inception.shapes().items():
        layer, _, what = name.replace("/", ".").rpartition(".")
        if layer == "fc":
            array = RNG.standard_normal(shape, np.float32)
            torch |= {"fc.weight": array.T, "fc.bias": np.ones(1008, np.float32)}
            jax_fid |= {"fc.kernel": array, "fc.bias": np.ones(1008, np.float32)}
        elif what == "kernel":
            array = RNG.standard_normal(shape, np.float32)
            torch[f"{layer}.conv.weight"], jax_fid[f"{layer}.conv.kernel"] = array.transpose(3, 2, 0, 1), array
            for of_torch, of_jax in zip(OF_TORCH, OF_JAX):
                vector = RNG.uniform(0.5, 1.5, shape[-1]).astype(np.float32)
                torch[f"{layer}.bn.{of_torch}"] = jax_fid[f"{layer}.bn.{of_jax}"] = vector
            torch[f"{layer}.bn.num_batches_tracked"] = np.zeros((), np.int64)
    return torch, jax_fid


def test_size():
    """As Keras' InceptionV3 of 1000 classes: 23,817,352 trainable parameters, of which 2,049,000 are the last layer, here 2048 x 1008."""
    assert sum(int(np.prod(shape)) for shape in inception.shapes().values()) == 23_817_352 - 2_049_000 + 2048 * 1008
    like = jax.eval_shape(Inception().init, jax.random.key(0), np.zeros((1, 32, 32, 1), np.uint8))
    pool, logits = jax.eval_shape(Inception().apply, like, np.zeros((5, 40, 30, 1), np.uint8))
    assert pool.shape == (5, 2048) and logits.shape == (5, 1008)


def test_every_array_is_used_once(public):
    """Both layouts give the same parameters, of the shapes of the network, from every array but the last layer's bias and the batch counts."""

    class Noting(dict):
        def __init__(self, *args):
            super().__init__(*args)
            self.read = []

        def __getitem__(self, name):
            self.read.append(name)
            return super().__getitem__(name)

    noting, unused = Noting(public[0]), {"fc.bias"} | {name for name in public[0] if "num_batches" in name}
    found = inception.folded(noting)
    assert sorted(noting.read) == sorted(public[0].keys() - unused)
    assert {name: array.shape for name, array in found.items()} == inception.shapes()
    for name, array in inception.folded(public[1]).items():
        np.testing.assert_array_equal(found[name], array)
    layer, x = "Mixed_5b.branch1x1", RNG.standard_normal(192)
    weight, (scale, bias, mean, variance) = public[0][f"{layer}.conv.weight"], (public[0][f"{layer}.bn.{name}"] for name in OF_TORCH)
    expected = scale * (weight[:, :, 0, 0] @ x - mean) / np.sqrt(variance + 1e-3) + bias
    np.testing.assert_allclose(x @ found["Mixed_5b/branch1x1/kernel"][0, 0] + found["Mixed_5b/branch1x1/bias"], expected, rtol=1e-4, atol=1e-4)


def test_files(public, tmp_path, capsys):
    """A pickle of jax-fid's kind, and what is saved of it; others and damaged ones end in one line, and unpublished ones are called so."""
    nested = {}
    for name, array in public[1].items():
        *path, last = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = array
    file = tmp_path / "weights.pickle"
    file.write_bytes(pickle.dumps(nested))
    features = inception.load(file)
    assert "is none of the published files" in capsys.readouterr().out
    inception.save(features, tmp_path / "ours.safetensors")
    ours = inception.load(tmp_path / "ours.safetensors", "torch")
    assert ours.about() == {"inception": features.sha256[:8], "resize": "torch"}
    for name, array in features.params.items():
        np.testing.assert_array_equal(ours.params[name], array)
    del nested["Mixed_7c"]["branch_pool"]
    (tmp_path / "part.pickle").write_bytes(pickle.dumps(nested))
    (tmp_path / "other.safetensors").write_bytes(b"other")
    for name, words in (("part.pickle", "it has no 'Mixed_7c.branch_pool.bn.scale'"), ("other.safetensors", "is not what `python -m")):
        with pytest.raises(ValueError, match=words):
            inception.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        inception.load(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="--resize=pil: expected tf1 or torch"):
        inception.load(file, "pil")


def test_interpolation():
    """A row of 299 is as it was; rows are means; a ramp stays one, of the conventions' slopes and starts."""
    for resize in ("tf1", "torch"):
        np.testing.assert_array_equal(interpolation(299, resize), np.eye(299))
        for size in (1, 32, 500):
            matrix = interpolation(size, resize)
            assert matrix.min() >= 0
            np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    ramp, place = np.arange(32.0), np.arange(299)
    np.testing.assert_allclose(interpolation(32, "tf1") @ ramp, np.minimum(place * 32 / 299, 31), atol=1e-4)
    np.testing.assert_allclose(interpolation(32, "torch") @ ramp, np.clip((place + 0.5) * 32 / 299 - 0.5, 0, 31), atol=1e-4)


def test_prepare():
    """Ends of the range in either convention; a grey image as three equal colours; other images are refused."""
    x = np.concatenate([np.zeros((1, 8, 8, 1), np.uint8), np.full((1, 8, 8, 1), 255, np.uint8)])
    np.testing.assert_allclose(prepare(x, "tf1")[:, 5, 7], [[-1] * 3, [127 / 128] * 3], atol=1e-6)
    np.testing.assert_allclose(prepare(x, "torch")[:, 5, 7], [[-1] * 3, [1] * 3], atol=1e-6)
    with pytest.raises(ValueError, match="expected tf1 or torch and 1 or 3 channels"):
        prepare(np.zeros((1, 8, 8, 4), np.uint8), "tf1")
