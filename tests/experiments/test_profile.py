"""The profile of a training step: its counts against a closed form, and what it calls input-bound."""

import time
from dataclasses import replace

import numpy as np
import pytest

from configs import default
from experiments import data, profile


class Slow(np.ndarray):
    """Examples that take 400 ms to read, in whatever thread."""

    def __getitem__(self, index):
        time.sleep(0.4)
        return np.asarray(self)[index]


def small_config(**model):
    config = default.get_config()
    config.model.update(**({"name": "MLP", "width": 256, "depth": 2} | model))
    config.training.batch = 128
    return config


@pytest.mark.slow
def test_slow_data_are_called_input_bound_and_data_in_memory_not():
    config = small_config()
    dataset = data.load(config.data)
    found = profile.profile(config, dataset, steps=10)
    assert found["bound"] == "compute" and found["idle"] < profile.IDLE, found
    config = small_config(width=32)
    values = dataset.values | {"train": dataset.values["train"].view(Slow)}
    found = profile.profile(config, replace(dataset, values=values), steps=12)
    assert found["bound"] == "input" and found["idle"] > 0.5, found
    said = profile.report(config, dataset, found)
    assert "input-bound: the device waits for data" in said and "examples/s" in said


@pytest.mark.parametrize("parts", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_operations_are_those_of_the_network(parts):
    """Of an MLP 6 FLOPs for each weight and example (2 forward, 4 backward), less 2 for those of the first layer, whose input has no gradient; also
    in parts. The optimizer, the EMA and the loss have a few for each parameter and value."""
    config = small_config(width=512)
    config.training.accumulate = parts
    counted = profile.profile(config, data.load(config.data), steps=1)["flops"]
    weights = [(64 + 1) * 512, 512 * 512, 512 * 64]
    expected = config.training.batch * (6 * sum(weights) - 2 * weights[0])
    assert expected < counted < (1.1 + 0.06 * parts) * expected, (counted, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "embeddings", "autoencoder", "fsdp"])
def test_every_kind_of_config(kind, tmp_path):
    config = small_config()
    dataset = data.load(config.data)
    if kind == "lora":
        config.lora.rank = 2
    elif kind == "embeddings":
        labels = {split: (np.ones((len(v), 3, 5), np.float32), np.ones((len(v), 4), np.float32)) for split, v in dataset.values.items()}
        dataset = replace(dataset, labels=labels, num_classes=0)
        config = default.get_config()
        config.model.update(name="MMDiT", width=16, depth=1, num_heads=2, patch=2, embeddings=(3, 5, 4))
    elif kind == "fsdp":
        config.training.sharding = "fsdp"
    else:
        config = default.get_config()
        config.objective.loss = "autoencoder"
        config.model.update(name="KLAutoencoder", channels=8, multipliers=(1, 2), blocks=1, latent_channels=2, image_channels=1)
    config.training.batch = 8
    found = profile.profile(config, dataset, 2, tmp_path / "trace" if kind == "lora" else "")
    assert min(found[name] for name in ("flops", "bytes", "compile", "wait", "compute", "step", "memory", "parameters")) > 0
    if kind == "lora":
        assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_impossible_steps_are_refused():
    config = small_config()
    with pytest.raises(ValueError, match="--steps=0: expected at least 1"):
        profile.profile(config, data.load(config.data), 0)
    config.training.batch = 0
    with pytest.raises(ValueError, match="nearest that can"):
        profile.profile(config, data.load(config.data), 1)
