"""Numbers that are not finite: in the loss, the gradient, the averaged weights, one example."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import restore, same, small_config

from experiments import data, objectives, parallel
from experiments.train import NONFINITE, train

BAD = int(data.Batches(data.load(small_config().data), 16, 0).index(np.array([6 * 16 + 3]))[0])  # an example of the 7th batch


def when(batch, step):
    """Of each example of a batch of 16: whether it is of this step."""
    return batch["position"] // 16 == step - 1


def is_bad(batch):
    return jnp.all(batch["value"] == data.load(small_config().data).values["train"][BAD], axis=(1, 2, 3))


@jax.custom_jvp
def broken(x, bad):
    """x, with a derivative that is NaN where `bad`."""
    return x


broken.defjvp(lambda primals, tangents: (primals[0], tangents[0] * jnp.where(primals[1], jnp.nan, 1.0)))


FAULTS = {  # (loss of each example, batch) -> loss
    "loss": lambda each, batch: jnp.where(when(batch, 5), jnp.inf, each),
    "gradient": lambda each, batch: broken(each, when(batch, 5)),
    "sample": lambda each, batch: jnp.where(is_bad(batch), jnp.nan, each),
}


@pytest.fixture
def inject(monkeypatch):
    def into(fault):
        right = objectives.loss
        monkeypatch.setattr(objectives, "loss", lambda *args, **named: FAULTS[fault](right(*args, **named), args[5]))

    return into


def first_step_with(example):
    source = data.Batches(data.load(small_config().data), 16, 0)
    return next(k + 1 for k in range(200) if example in source.index(np.arange(16) + 16 * k))


@pytest.mark.parametrize("fault", FAULTS)
def test_training_stops(fault, inject, monkeypatch, tmp_path, count):
    """Within one log interval; the batch and the examples that did it are told, the last checkpoint is finite."""
    inject(fault)
    step = first_step_with(BAD) if fault == "sample" else 5
    config = small_config(steps=200, log_every=4, checkpoint_every=4)
    made, right = [], data.batches
    monkeypatch.setattr(data, "batches", lambda *args: map(lambda batch: made.append(0) or batch, right(*args)))
    with pytest.raises(FloatingPointError, match=rf"(loss|grad_norm) is (nan|inf) at step {step}: stopped.*{NONFINITE} names"):
        train(config, tmp_path)
    (told,) = map(json.loads, open(tmp_path / NONFINITE))
    source = data.Batches(data.load(config.data), 16, config.seed)
    batch = source.index(np.arange(16) + 16 * (step - 1)).tolist()
    assert told["step"] == step and told["batch"] == batch
    assert told["not_finite"] == {"loss": batch, "gradient": [], "sample": [BAD]}[fault]
    last = restore(tmp_path / "checkpoints")
    assert len(made) < step + config.training.log_every
    with pytest.raises(FloatingPointError, match=f"at step {step}: stopped"):
        train(config, tmp_path)  # comes by the same step again
    assert len((tmp_path / NONFINITE).read_text().splitlines()) == 1
    assert int(last.step) == (step - 1) // 4 * 4 and all(np.isfinite(a).all() for a in jax.tree.leaves(last))
    count(f"NaN in {fault}: stopped within one interval, examples told, last checkpoint finite", 1, 1)


def test_averaged_weights_are_looked_at(monkeypatch, tmp_path, count):
    right = parallel.make_step

    def make_step(*args):
        def step(current, batch, base=None):
            new, metrics = right(*args)(current, batch, base)
            return new.replace(ema=jax.tree.map(lambda a: jnp.where(new.step == 5, jnp.nan, a), new.ema)), metrics

        return step

    monkeypatch.setattr(parallel, "make_step", make_step)
    with pytest.raises(FloatingPointError, match=r"ema/\S+ is not finite at step 6"):
        train(small_config(steps=20), tmp_path)
    assert int(restore(tmp_path / "checkpoints").step) == 3
    count("NaN in EMA: stopped at the next checkpoint, which is not written", 1, 1)


def test_skipping(inject, tmp_path, capsys):
    """config.training.nonfinite=skip: a bad step changes nothing but the count, all others do; steps that are all bad stop the run."""
    inject("sample")
    step = first_step_with(BAD)
    config = small_config(steps=step + 2, log_every=1, checkpoint_every=1, nonfinite="skip")
    train(config, tmp_path / "run")
    before, skipped, after = (restore(tmp_path / "run" / "checkpoints", step + i) for i in (-1, 0, 1))
    assert int(skipped.step) == step
    for name in ("params", "ema", "opt_state"):
        assert same(getattr(before, name), getattr(skipped, name)) and not same(getattr(skipped, name), getattr(after, name))
    lines = [json.loads(line) for line in open(tmp_path / "run" / "log.jsonl")]
    assert [line["skipped"] for line in lines] == [int(line["step"] == step) for line in lines]
    (told,) = map(json.loads, open(tmp_path / "run" / NONFINITE))
    assert told["skipped"] == 1 and told["not_finite"] == [BAD]

    inject("loss")
    with pytest.raises(ValueError, match="nonfinite = 'ignore': expected stop or skip"):
        train(small_config(nonfinite="ignore"), tmp_path / "other")


def test_a_run_that_skips_everything_stops(monkeypatch, tmp_path):
    monkeypatch.setattr(objectives, "loss", lambda *args: jnp.full(16, jnp.nan))
    with pytest.raises(FloatingPointError, match="the last 10 steps were not finite and all skipped: stopped"):
        train(small_config(steps=20, log_every=5, checkpoint_every=20, nonfinite="skip"), tmp_path)
