"""ArrayRecord files: what is written comes back, in the batches that the same data in memory give; what is no record of ours is refused."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save

from experiments import data, records

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (50, 6, 4, 3)).astype(np.uint8), RNG.integers(0, 5, 50).astype(np.int32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CACHE", tmp_path / "cache")
    data._images.cache_clear()


def load(name, path):
    return data.load(ConfigDict({"name": name, "path": str(path)}))


def test_batches_are_those_of_the_same_data_in_memory(tmp_path):
    """By a folder and by an npz of the same arrays: scaling, classes and three batches over the end of an epoch, bit for bit."""
    folder = tmp_path / "records"
    records.write(folder / "train-0.array_record", IMAGES[:30], LABELS[:30])
    records.write(folder / "train-1.array_record", IMAGES[30:40], LABELS[30:40])
    records.write(folder / "test.array_record", IMAGES[40:], LABELS[40:])
    np.savez(tmp_path / "data.npz", x=IMAGES[:40], y=LABELS[:40], x_test=IMAGES[40:], y_test=LABELS[40:])
    ours, memory = load("array_record", folder), load("npz", tmp_path / "data.npz")
    for name in ("shift", "scale", "levels", "num_classes", "shape"):
        assert getattr(ours, name) == getattr(memory, name), name
    for a, b, _ in zip(data.batches(ours, 24, 7), data.batches(memory, 24, 7), range(3)):
        for key in b:
            np.testing.assert_array_equal(a[key], b[key])
    test = ours.values["test"]
    for index in (3, -1, slice(2, 9, 3), np.array([5, 0, 5]), slice(0, 0)):
        np.testing.assert_array_equal(test[index], memory.values["test"][index])
    np.testing.assert_array_equal(np.asarray(test), IMAGES[40:])
    assert not list(folder.glob("*.tmp"))


def test_one_file_of_latents_without_labels(tmp_path, monkeypatch):
    """One of twenty is for testing; the second time no record is read for its label."""
    latents = RNG.normal(size=(41, 4, 4, 2)).astype(np.float32)
    records.write(tmp_path / "latents", latents)
    first = load("array_record", tmp_path / "latent*")
    np.testing.assert_allclose(first.raw(first.values["test"]), latents[[19, 39]], atol=1e-6)
    np.testing.assert_allclose(first.raw(first.values["train"][18:20]), latents[[18, 20]], atol=1e-6)
    assert first.num_classes == 0 and first.levels == 0 and len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    data._images.cache_clear()
    monkeypatch.setattr(records, "SCAN", None)
    np.testing.assert_array_equal(load("array_record", tmp_path / "latents").labels["train"], first.labels["train"])


THREE = {"x": np.zeros(3, np.uint8)}


def contents(*examples):
    return [save(example) for example in examples]


@pytest.mark.parametrize(
    "content, words",
    [
        (contents(*[{"y": np.array(1)}] * 40), "record 0 of .* has y: expected x"),
        ([b"JPEG"] * 40, "record 0 of .* is no safetensors file"),
        (contents(*[THREE] * 30, *[{"x": np.zeros(4, np.uint8)}] * 10), r"record 30 of .* has x \(4,\) of uint8: expected \(3,\)"),
        (contents(*[{"x": np.full(3, np.nan, np.float32)}] * 40), "expected x, uint8, uint16, float32, float64 and finite"),
        (contents(*[THREE | {"y": np.array(-1)}] * 40), "has y .* expected one integer from 0"),
        (contents(THREE | {"y": np.array(1)}, *[THREE] * 39), "1 labels y of 40 records"),
        (contents(*[THREE] * 5), "has 5 records: expected at least 20"),
        ([], "has no records"),
    ],
)
def test_what_is_no_record_of_ours_is_refused(tmp_path, content, words):
    out = records.writer(tmp_path / "file")
    for record in content:
        out.write(record)
    out.close()
    with pytest.raises(ValueError, match=words):
        load("array_record", tmp_path / "file")


def test_what_is_no_file_of_records_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 70_000)
    with pytest.raises(ValueError, match="cannot be read as ArrayRecord files"):
        load("array_record", tmp_path / "file")
    for path, words in ((tmp_path / "nothing*", "no such file"), (tmp_path, "has no files train\\*.array_record"), ("", "no such file")):
        with pytest.raises(FileNotFoundError, match=words):
            load("array_record", path)
    out = tmp_path / "damaged"
    records.write(out, RNG.integers(0, 256, (40, 64, 64, 3)).astype(np.uint8))
    content = bytearray(out.read_bytes())
    content[len(content) // 2] ^= 1
    out.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged|cannot be read"):
        load("array_record", out)
