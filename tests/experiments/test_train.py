"""Training: resume, stopping, failing, several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from experiments import cli, data, drift, parallel, runs, state
from experiments.checkpoints import Checkpoints
from experiments.train import train

ROOT = Path(__file__).parents[2]


def leaves(tree):
    return [np.asarray(a) for a in jax.tree.leaves(tree)]


def test_resuming_under_a_schedule_is_bit_identical(tmp_path):
    """A cosine run (as in `make demo`) stopped at step 1 and resumed ends as the uninterrupted one, although its rate changes every step."""
    config = small_config()
    config.optim.update({"schedule": "cosine", "warmup": 2, "weight_decay": 0.01})
    with pytest.raises(cli.Stopped):
        train(config, tmp_path / "run", stop=True)
    for a, b in zip(leaves(train(config, tmp_path / "run")), leaves(train(config, tmp_path / "whole"))):
        np.testing.assert_array_equal(a, b)


def test_resuming_is_bit_identical(tmp_path):
    """6 steps in one run, or 4 and then 2: the same state to the last bit, parameters, EMA, optimizer and key."""
    whole = train(small_config(), tmp_path / "whole")
    train(small_config(steps=4), tmp_path / "parts")
    parts = train(small_config(), tmp_path / "parts")
    assert int(parts.step) == 6
    for a, b in zip(leaves(whole), leaves(parts)):
        np.testing.assert_array_equal(a, b)
    steps = [json.loads(line)["step"] for line in open(tmp_path / "parts" / "log.jsonl")]
    assert steps == [2, 4, 6]  # appended to, not truncated
    assert sorted(map(int, os.listdir(tmp_path / "whole" / "checkpoints"))) == [3, 6]
    assert (tmp_path / "whole" / "loss.png").exists()


def test_stopping_saves(tmp_path):
    """A stop asked for at step 1 saves that step; the same command goes on from there and ends as if nothing had happened."""
    with pytest.raises(cli.Stopped, match="at step 1, which is saved"):
        train(small_config(), tmp_path / "run", stop=True)
    resumed, whole = train(small_config(), tmp_path / "run"), train(small_config(), tmp_path / "whole")
    for a, b in zip(leaves(resumed), leaves(whole)):
        np.testing.assert_array_equal(a, b)


def test_divergence_ends_the_run_and_keeps_the_past(tmp_path):
    train(small_config(), tmp_path)
    config = small_config(steps=12, checkpoint_every=1)
    before = json.loads((tmp_path / "config.json").read_text())
    with Checkpoints(tmp_path / "checkpoints", keep=0) as checkpoints:
        current = checkpoints.restore(jax.eval_shape(lambda: state.init(config, *network_and_shape(config))))
        broken = current.replace(step=np.int32(7), params=jax.tree.map(lambda p: p * np.float32(np.nan), current.params))
        checkpoints.save(broken)
    with pytest.raises(FloatingPointError, match="is nan at step 8: stopped"):
        train(config, tmp_path)
    assert sorted(map(int, os.listdir(tmp_path / "checkpoints"))) == [3, 6, 7]
    assert before["optim"] == json.loads((tmp_path / "config.json").read_text())["optim"]


def network_and_shape(config):
    from experiments import data, network

    dataset = data.load(config.data)
    return network.from_config(config, dataset.num_classes), dataset.shape


def test_checkpoints_are_verified(tmp_path):
    """A missing step, another architecture, another type, a state without EMA: each is refused by name; files are in tests/faults."""
    config = small_config()
    train(config, tmp_path)
    like = jax.eval_shape(lambda: state.init(config, *network_and_shape(config)))

    def restore(like, step=None):
        with Checkpoints(tmp_path / "checkpoints", keep=None) as checkpoints:
            return checkpoints.restore(like, step)

    assert int(restore(like).step) == 6 and int(restore(like, 3).step) == 3
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 5.*3, 6"):
        restore(like, 5)
    config.model.width = 24
    with pytest.raises(
        ValueError, match=r"does not fit this config: params/Conditioning_0/Dense_0/bias is float32 \(16,\), expected float32 \(24,\)"
    ):
        restore(jax.eval_shape(lambda: state.init(config, *network_and_shape(config))))
    with pytest.raises(FileNotFoundError, match="config.json.*made by"):
        runs.load_run(tmp_path / "nowhere")


def test_a_run_keeps_its_config(tmp_path):
    train(small_config(steps=1), tmp_path)
    config = small_config()
    config.objective.kind = "noise"
    with pytest.raises(ValueError, match=r"objective.kind: velocity -> noise \(changes the result\)"):
        train(config, tmp_path)
    older = json.loads((tmp_path / "config.json").read_text())
    del older["objective"]["loss"]  # a key that came later has its default
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert runs.load_run(tmp_path).config.objective.loss == "regression"
    train(small_config(steps=2), tmp_path)


def test_ema_and_loss(tmp_path):
    """The EMA after one step is (p0 + 9 p1 ... ) by its warm-up min(decay, 1/10); the loss falls."""
    config = small_config(steps=1)
    net, shape = network_and_shape(config)
    start = leaves(state.init(config, net, shape).params)
    one = train(config, tmp_path / "one")
    for p0, p1, e in zip(start, leaves(one.params), leaves(one.ema)):
        np.testing.assert_allclose(e, 0.1 * p0 + 0.9 * p1, rtol=1e-5, atol=1e-7)
    train(small_config(steps=200, log_every=20, checkpoint_every=200), tmp_path / "long")
    losses = [json.loads(line)["loss"] for line in open(tmp_path / "long" / "log.jsonl")]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_accumulating_changes_nothing(tmp_path):
    """A batch in 4 parts gives the gradients, and so the losses, of the whole; a batch that cannot be divided so is refused."""
    losses = []
    for parts in (1, 4):
        train(small_config(steps=4, log_every=1, accumulate=parts), tmp_path / str(parts))
        losses.append([json.loads(line)["loss"] for line in open(tmp_path / str(parts) / "log.jsonl")])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    with pytest.raises(ValueError, match="16 cannot be divided over 1 devices in 3 parts each: the nearest that can is 15 or 18"):
        train(small_config(accumulate=3), tmp_path / "3")


@pytest.mark.parametrize("batch, words", [(0, "nearest that can is 1"), (-4, "nearest")])
def test_impossible_batches_are_refused(tmp_path, batch, words):
    with pytest.raises(ValueError, match=words):
        train(small_config(batch=batch), tmp_path)


def test_impossible_configs_are_refused(tmp_path):
    for key, value, words in (
        ("sde", {"name": "VPP"}, "expected one of Cosine"),
        ("sde", {"name": "VE", "beta_min": 0.1}, "VE has no option 'beta_min': it has sigma_min, sigma_max"),
        ("model", {"name": "ResidualMLP", "widht": 3}, "did you mean width"),
        ("model", {"name": "MLP", "num_classes": 3}, "the data set has 10 classes"),
    ):
        config = small_config()
        config[key] = value
        with pytest.raises(ValueError, match=words):
            train(config, tmp_path)
    for key, value, words in (
        ("kind", "eps", "expected one of noise"),
        ("clock", "steps", "expected one of time"),
        ("weighting", "snr", "expected one of own"),
    ):
        config = small_config()
        config.objective[key] = value
        with pytest.raises(ValueError, match=words):
            train(config, tmp_path)
    assert not os.listdir(tmp_path)


@pytest.fixture
def positions(monkeypatch):
    """The places in the stream of the batches that a training was given last, by step; its steps compute nothing, which need not be compiled."""
    given = {}

    def step(state, batch):
        given[int(state.step)] = batch["position"].tolist()
        return state.replace(step=state.step + 1), {"loss": jnp.ones(()), "grad_norm": jnp.ones(()), "finite": np.full(len(batch["position"]), True)}

    monkeypatch.setattr(parallel, "training_step", lambda *_: step)
    return given


def test_another_batch_size_goes_on_in_the_stream(tmp_path, positions, capsys):
    """Batches of 8 after 2 of 16: every example of the stream comes once, so that none repeats with the same noise; where the position was the step
    times the batch, the third batch was a part of the second."""
    train(small_config(steps=2), tmp_path)
    train(small_config(batch=8, steps=4), tmp_path, allow_drift=True)
    assert "batches of 8 examples instead of 16 from step 2 on" in capsys.readouterr().out
    assert sum((positions[k] for k in range(4)), []) == list(range(2 * 16 + 2 * 8))
    assert set(2 * 8 + np.arange(8)) <= set(positions[1])


def test_batch_sizes_of_the_past(tmp_path):
    """Where batches begin after two changes; after a third that is made at an older checkpoint, which undoes the second; and after half a line."""
    changed = lambda step, old, new: json.dumps({"step": step, "changed": {"training.batch": [old, new], "optim.ema": [0.9, 0.99]}}) + "\n"
    history, other = tmp_path / drift.HISTORY, [("optim.ema", 0.9, 0.99)]
    assert drift.stretch(tmp_path, 50, other) == data.Stretch()
    assert drift.stretch(tmp_path, 50, [("training.batch", 16, 8)]) == data.Stretch(50, 800)
    history.write_text(changed(100, 16, 8) + json.dumps({"step": 120, "changed": {"seed": [0, 1]}}) + "\n" + changed(150, 8, 24))
    assert drift.stretch(tmp_path, 200, other) == data.Stretch(150, 100 * 16 + 50 * 8)
    assert drift.stretch(tmp_path, 130, [("training.batch", 8, 24)]) == data.Stretch(130, 100 * 16 + 30 * 8)
    (tmp_path / "config.json").write_text(small_config(batch=24).to_json())
    assert drift.changes_of_batch(small_config(batch=24), tmp_path, 130, other) == [*other, ("training.batch", 8, 24)]
    assert drift.changes_of_batch(small_config(batch=24), tmp_path, 150, other) == other
    history.write_text(history.read_text() + changed(160, 24, 16)[:30])
    assert drift.stretch(tmp_path, 200, other) == data.Stretch(150, 100 * 16 + 50 * 8)


@pytest.mark.slow
def test_many_batch_sizes(tmp_path, positions):
    """Batches of 16, then 8, then 24, each resumed by the same command too, and the last from an older checkpoint: each example comes once."""
    for batch, steps in {16: 3, 8: 6, 24: 8}.items():
        train(small_config(batch=batch, steps=steps, checkpoint_every=1), tmp_path, allow_drift=True)
        train(small_config(batch=batch, steps=steps + 1, checkpoint_every=1), tmp_path)
    every = lambda: [position for k in sorted(positions) for position in positions[k]]
    assert every() == list(range(4 * 16 + 3 * 8 + 2 * 24))
    for step in (7, 8, 9):  # lost: what was in batches of 24 is done again from step 6 on
        (tmp_path / "checkpoints" / str(step) / "manifest.json").unlink()
    train(small_config(batch=24, steps=8, checkpoint_every=1), tmp_path)
    train(small_config(batch=24, steps=9, checkpoint_every=1), tmp_path)
    assert every() == list(range(4 * 16 + 2 * 8 + 3 * 24))


WORKER = """
import json, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1] + "/tests")
from small import small_config
from experiments import runs, sample
from experiments.train import train
train(small_config(steps=4, log_every=1), sys.argv[2])
values = sample.generate(runs.load_run(sys.argv[2]), 20, 8, 0, solver="ancestral", steps=8, grid="log_snr", tolerance=1e-3)[0]
np.save(sys.argv[2] + "/values.npy", values)
"""


@pytest.mark.slow
def test_devices_do_not_matter(tmp_path):
    """1, 2 and 8 simulated devices: the same losses to 1e-5 relative, the same samples (at most one pixel in 500, on a bin edge, may differ)."""
    losses, samples = [], []
    for n in (1, 2, 8):
        workdir = tmp_path / str(n)
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={n}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", WORKER, str(ROOT), str(workdir)], env=environment, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([json.loads(line)["loss"] for line in open(workdir / "log.jsonl")])
        samples.append(np.load(workdir / "values.npy").astype(int))
    for n in (1, 2):
        np.testing.assert_allclose(losses[n], losses[0], rtol=1e-5)
        assert np.mean(samples[n] != samples[0]) < 2e-3
    assert jnp.asarray(samples[0]).std() > 0


@pytest.mark.slow
def test_more_devices_than_examples_are_refused(start, tmp_path):
    arguments = ["--config=configs/toy.py", f"--workdir={tmp_path}", "--config.training.batch=12"]
    done = start("experiments.train", *arguments, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert done.wait() == 1 and "cannot be divided over 8 devices: the nearest that can is 8 or 16" in done.said
