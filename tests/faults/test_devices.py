"""The same run on any number of devices, its arrays whole on each (data) or divided over them (fsdp), and its checkpoints from one to another."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from small import like, restore, same, small_config, small_flags

from configs import dit
from experiments import network, parallel, state
from experiments.checkpoints import Checkpoints
from experiments.train import train

DEVICES = "--xla_force_host_platform_device_count="


def losses(workdir):
    return [json.loads(line)["loss"] for line in open(workdir / "log.jsonl")]


@pytest.fixture
def on(start, tmp_path):
    """on(devices, folder, sharding, ...): train `small_config` there, on so many simulated devices; returns the workdir."""

    def run(devices, folder, sharding="data", **training):
        workdir = tmp_path / folder
        flags = [*small_flags(workdir, log_every=1, **training), f"--config.training.sharding={sharding}"]
        command = start("experiments.train", *flags, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {DEVICES}{devices}")
        assert command.wait() == 0, command.said[-2000:]
        return workdir

    return run


@pytest.fixture
def restored(start):
    """restored(devices, folder, sharding): SHA-256 of the arrays, the next ten batches and their noise; and how many arrays are divided."""

    def digests(devices, folder, sharding):
        command = start("restored", str(folder), sharding, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {DEVICES}{devices}")
        assert command.wait() == 0, command.said[-2000:]
        found = json.loads(command.said.splitlines()[-1])
        return {name: found[name] for name in ("step", "arrays", "batches", "noise")}, found["divided"]

    return digests


def test_saved_on_eight_devices(on, restored, tmp_path, times, count):
    """Saved on 8, trained on on 1, 2, 4 and 8, whole or divided: the arrays, the next ten batches and their noise are the same bits, the losses those
    of one device to 1e-5."""
    alone = train(small_config(log_every=1), tmp_path / "alone")
    held = total = 0
    for sharding in times(("fsdp",), ("data", "fsdp")):
        saved = on(8, f"{sharding}", sharding, steps=3)
        first, there = restore(saved / "checkpoints", config=small_config(steps=3)), restored(8, saved / "checkpoints", sharding)
        assert (there[1] > 0) == (sharding == "fsdp")
        for devices in times((2,), (1, 2, 4, 8)):
            for other in times(("data",), ("data", "fsdp")):
                workdir = tmp_path / f"{sharding}_{devices}_{other}"
                shutil.copytree(saved, workdir)
                here = restored(devices, workdir / "checkpoints", other)
                assert (here[1] > 0) == (other == "fsdp" and devices > 1)
                on(devices, workdir.name, other, steps=6)
                with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
                    kept = checkpoints.restore(like(small_config()), 3)
                    last = checkpoints.restore(like(small_config()), 6)
                close = all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(jax.tree.leaves(last.params), jax.tree.leaves(alone.params)))
                held += (
                    here[0] == there[0]
                    and same(kept, first)
                    and close
                    and np.allclose(losses(workdir), losses(tmp_path / "alone"), rtol=1e-5, atol=0)
                )
                total += 1
    count("saved on 8 devices, loaded on others: arrays, noise, batches equal, losses to 1e-5", held, total)


def test_no_device_holds_all():
    """Of a DiT's state at 8 devices each gets an eighth, but for arrays too small to divide; the sum over devices is the whole."""
    config = dit.get_config("s")
    net = network.from_config(config, 1000)
    full = jax.eval_shape(lambda: state.init(config, net, (32, 32, 4)))
    mesh = jax.sharding.AbstractMesh((8,), (state.AXIS,))
    parts = jax.tree.map(lambda a: np.prod(jax.sharding.NamedSharding(mesh, parallel.spec(a.shape, 8)).shard_shape(a.shape)) * a.dtype.itemsize, full)
    share = sum(jax.tree.leaves(parts)) / sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(full))
    assert 1 / 8 <= share < 1.01 / 8
