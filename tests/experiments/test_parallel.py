"""How training is divided over devices changes neither what is computed nor, where the state is split, what a device must hold."""

import json
import os

import pytest
from small import same_training, small_config, small_flags

EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return tmp_path_factory.mktemp("alone") / "run"


def trained(start, workdir, devices, *flags):
    flags = ["--config.model.width=64", *flags]
    arguments = small_flags(workdir, steps=6, log_every=1, checkpoint_every=6, batch=32)
    command = start("experiments.train", *arguments, *flags, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {EIGHT if devices == 8 else ''}")
    assert command.wait() == 0 and f"; {devices} x cpu" in command.said, command.said


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["fsdp", 2], ["data"], ["data", 4], ["fsdp"]])
def test_eight_devices_train_as_one(start, alone, tmp_path, flags):
    """With dropout, by either sharding, and in parts: the losses and the weights of one device, to 1e-5."""
    if not alone.exists():
        trained(start, alone, 1)
    sharding, parts = (*flags, 1)[:2]
    trained(start, tmp_path / "run", 8, f"--config.training.sharding={sharding}", f"--config.training.accumulate={parts}")
    config = small_config(steps=6)
    config.model.width = 64
    same_training(alone, tmp_path / "run", config)


@pytest.mark.slow
def test_a_split_state_is_an_eighth_on_each_of_eight_devices(start):
    """Of the compiled step's arguments, by XLA's own count, for a small model; by its shapes, of the state of DiT-XL/2."""
    command = start("lowered", XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {EIGHT}")
    assert command.wait() == 0, command.said
    found = json.loads(command.said.splitlines()[-1])
    small, xl = found["small"], found["xl"]
    assert found["devices"] == 8 and small["text"] == ["all-gather", "all-reduce"]
    assert abs(small["argument"] - small["shapes"]) < 0.01 * small["whole"]
    assert 1 / 8 <= small["argument"] / small["whole"] < 0.15
    assert xl["whole"] > 10e9 and 1 / 8 <= xl["shapes"] / xl["whole"] < 0.126


def test_unknown_sharding(start, tmp_path):
    command = start("experiments.train", *small_flags(tmp_path), "--config.training.sharding=zero")
    assert command.wait() == 1 and "error: config.training.sharding = 'zero': expected data or fsdp" in command.said
