"""A run of a second: a residual MLP with dropout on the digits, as a config and as the flags of a command."""

import json

import jax
import numpy as np

from configs import default
from experiments import data, drift, network, state
from experiments.checkpoints import Checkpoints

MODEL = {"name": "ResidualMLP", "width": 16, "depth": 1, "dropout": 0.2, "num_classes": 0, "frequencies": ()}


def small_config(**training):
    config = default.get_config()
    config.model = dict(MODEL)
    config.optim.warmup = 0
    config.training.update({"batch": 16, "steps": 6, "log_every": 2, "checkpoint_every": 3, "keep": 0, **training})
    return config


def config_of(**model):
    """Four steps of a residual MLP without dropout."""
    config = default.get_config()
    config.model.update(name="ResidualMLP", width=16, depth=1, **model)
    config.training.update(batch=16, steps=4, log_every=2, checkpoint_every=2)
    return config


def save_random(config, workdir):
    """A run of random weights without its training, which would be most of the time of these tests."""
    dataset = data.load(config.data)
    new = state.init(config, network.from_config(config, dataset.num_classes), dataset.shape)
    leaves, tree = jax.tree.flatten(new.ema)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [a + 0.1 * rng.standard_normal(a.shape, np.float32) for a in leaves])
    workdir.mkdir()
    with Checkpoints(workdir / "checkpoints", keep=0) as checkpoints:
        checkpoints.save(new.replace(step=np.int32(1), params=params, ema=params))
    drift.record(config, workdir, drift.examined(dataset), 1)


def small_flags(workdir, **training) -> list[str]:
    """Arguments of `experiments.train` for `small_config`."""
    config = small_config(**training)
    chosen = {f"model.{name}": config.model[name] for name in ("name", "width", "depth", "dropout")} | {"optim.warmup": 0}
    chosen |= {f"training.{name}": config.training[name] for name in ("batch", "steps", "log_every", "checkpoint_every", "keep")}
    return ["--config=configs/default.py", f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in chosen.items())]


def like(config) -> state.TrainState:
    """The shapes of a run's state."""
    dataset = data.load(config.data)
    return jax.eval_shape(lambda: state.init(config, network.from_config(config, dataset.num_classes), dataset.shape))


def restore(folder, step=None, config=None) -> state.TrainState:
    """The state of a checkpoint in `folder`, by default of `small_config`."""
    with Checkpoints(folder, keep=None) as checkpoints:
        return checkpoints.restore(like(config or small_config()), step)


def same(a, b) -> bool:
    """Whether two trees are equal to the last bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def logged(workdir) -> list[dict]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def same_training(one, several, config) -> None:
    """Losses agree to 1e-5, and so do the last parameters, their average and the moments of Adam, each as one vector."""
    for a, b in zip(logged(one), logged(several), strict=True):
        assert a["step"] == b["step"]
        np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-5)
    a, b = (restore(run / "checkpoints", config=config) for run in (one, several))
    for x, y in zip((a.params, a.ema, a.opt_state[1].mu, a.opt_state[1].nu), (b.params, b.ema, b.opt_state[1].mu, b.opt_state[1].nu)):
        x, y = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]).astype(np.float64) for tree in (x, y))
        assert np.linalg.norm(x - y) < 1e-5 * np.linalg.norm(x)
