"""Config drift on resume: every field has a class, and is accepted or refused by it, in one line that has old and new."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from configs import default
from experiments import cli, data, drift
from experiments.train import train


def small_config(folder: Path):
    """Of a tenth of the digits, in a file."""
    file = folder / "digits.npz"
    if not file.exists():
        images = datasets.load_digits().images.astype(np.uint8)[..., None]
        np.savez(file, x=images[:128], x_test=images[128:160])
        np.savez(folder / "others.npz", x=images[1000:1128], x_test=images[128:160])
        shutil.copy(file, folder / "moved.npz")
    config = default.get_config()
    config.data.update(name="npz", path=str(file))
    config.model.update(name="ResidualMLP", width=16, depth=1, dropout=0.2)
    config.optim.warmup = 0
    config.training.update(batch=16, steps=1, log_every=1, checkpoint_every=1, keep=0)
    return config


def files(folder: Path) -> dict:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and "tfevents" not in f.name}


def test_every_field_has_one_class():
    """A new key of configs/default.py without a class fails here: put it into `drift.CLASSES`."""
    listed = [field for fields in drift.CLASSES.values() for field in fields.split()]
    assert sorted(listed) == sorted(cli.flat(default.get_config()))


# 20 fields, another value of each, and the class that a user may expect; the short run has the first of each class
CASES = {
    drift.FREE: {
        "training.steps": 3, "data.path": "moved.npz", "training.log_every": 2, "training.checkpoint_every": 2, "training.keep": 3,
        "training.accumulate": 2,
    },
    drift.RESULT: {
        "optim.learning_rate": 2e-3, "data.flip": True, "objective.kind": "noise", "sde.name": "Trig", "training.batch": 8, "model.dropout": 0.1,
        "optim.ema": 0.9, "seed": 1,
    },
    drift.STATE: {
        "optim.weight_decay": 0.1, "model.width": 24, "optim.warmup": 5, "optim.schedule": "cosine", "lora.rank": 2, "model.name": "MLP",
    },
}  # fmt: skip


def test_drift(tmp_path, times, count, capsys):
    """Each field in turn, of a run of one step: refused or accepted as its class says; nothing that is saved changes by a byte."""
    train(small_config(tmp_path), tmp_path / "run")
    saved, held, of = files(tmp_path / "run"), 0, 0
    for kind, fields in CASES.items():
        for field, value in list(fields.items())[: times(1, 20)]:
            run, config = tmp_path / field, small_config(tmp_path)
            shutil.copytree(tmp_path / "run", run)
            value = str(tmp_path / value) if field == "data.path" else value
            config.update_from_flattened_dict({field: value})
            config.lora.base = str(run) if field == "lora.rank" else ""
            if field == "model.name":  # which has none of the options
                config.model.update(dropout=None)
            before = cli.flat(small_config(tmp_path))[field]
            said = f"{field}: {before} -> {value} ({kind})"
            capsys.readouterr()
            if kind != drift.FREE:
                with pytest.raises(ValueError) as error:
                    train(config, run, allow_drift=kind == drift.STATE)
                assert said in str(error.value) and ("--allow_drift" in str(error.value)) == (kind == drift.RESULT), error.value
                assert files(run) == saved, field
            if kind != drift.STATE:
                train(config, run, allow_drift=kind == drift.RESULT)
                assert said in capsys.readouterr().out
                now = files(run)
                assert all(now[name] == content for name, content in saved.items() if name.startswith(("checkpoints", drift.DATA)))
                assert now["log.jsonl"].startswith(saved["log.jsonl"])
                assert json.loads(now[drift.HISTORY]) == {"step": 1, "changed": {field: [before, value]}}
                assert cli.flat(json.loads(now["config.json"]))[field] == value
            held, of = held + 1, of + 1
    count("drift", held, of)


@pytest.mark.slow
def test_all_that_drifted_is_said_at_once(tmp_path, capsys):
    """Three fields and other data behind the same path; then they are allowed, training goes on, and the history has a line of each change."""
    run, config = tmp_path / "run", small_config(tmp_path)
    train(config, run)
    config.optim.update(learning_rate=2e-3, beta1=0.8)
    config.training.update(steps=2)
    shutil.copy(tmp_path / "others.npz", tmp_path / "digits.npz")
    data._images.cache_clear()
    with pytest.raises(ValueError) as error:
        train(config, run)
    for words in (
        "optim.learning_rate: 0.001 -> 0.002",
        "optim.beta1: 0.9 -> 0.8",
        "training.steps: 1 -> 2 (changes nothing",
        "the data: 128 examples -> 128 others",
    ):
        assert words in str(error.value), error.value
    assert "\n" not in str(error.value)
    assert int(train(config, run, allow_drift=True).step) == 2
    found = drift.examined(data.load(config.data))
    assert drift.check(config, run, found) == []  # what was allowed is the run's config now
    config.training.log_every = 3
    drift.record(config, run, found, 2, drift.check(config, run, found))
    lines = [json.loads(line) for line in (run / drift.HISTORY).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert set(lines[0]["changed"]) == {"optim.learning_rate", "optim.beta1", "training.steps", "the data"}
    assert lines[1]["changed"] == {"training.log_every": [1, 3]}


def test_a_schedule_has_the_length_in_it():
    """Steps are free of a constant rate alone; the weight decay may change if there was some; two fields that make up for each other do not fit."""
    constant = cli.flat(default.get_config()) | {"optim.warmup": 0}
    cosine = constant | {"optim.schedule": "cosine", "optim.warmup": 100, "optim.weight_decay": 0.1}
    assert drift.drifted(constant, constant | {"training.steps": 9}, True) == {"training.steps": drift.FREE}
    assert drift.drifted(cosine, cosine | {"training.steps": 9}, True) == {"training.steps": drift.RESULT}
    assert drift.drifted(cosine, cosine | {"optim.weight_decay": 0.2, "optim.warmup": 9}, True) == dict.fromkeys(
        ("optim.weight_decay", "optim.warmup"), drift.RESULT
    )
    assert drift.STATE in drift.drifted(constant, constant | {"optim.schedule": "cosine", "optim.warmup": 100}, True).values()
    assert drift.drifted(constant, constant | {"data.path": "/there"}, False) == {"data.path": drift.RESULT}
    assert drift.drifted(constant | {"model.gone": 3}, constant, True) == {"model.gone": drift.RESULT}


def test_the_same_data_are_known(tmp_path):
    """Decoded by another release, a level off here and there, they are the same; one example another, turned, relabelled or missing, they are not."""
    dataset = data.load(default.get_config().data)
    values, labels = (dict(a) for a in (dataset.values, dataset.labels))
    noted = json.loads(json.dumps(drift.examined(dataset)))
    altered = lambda **changed: drift.examined(replace(dataset, **changed))
    assert drift.same(noted, altered())
    off = np.random.default_rng(0).integers(0, 2, values["train"].shape) * (np.random.default_rng(1).random(values["train"].shape) < 0.02)
    assert drift.same(noted, altered(values=values | {"train": values["train"] + off.astype(np.uint8)}))
    last = values["train"].copy()
    last[-1] = 16 - last[-1]
    for other in (values["train"][:-1], values["train"][::-1], values["train"][:, ::-1], last):
        assert not drift.same(noted, altered(values=values | {"train": other}))
    assert not drift.same(noted, altered(labels=labels | {"train": (labels["train"] + 1) % 10}))
