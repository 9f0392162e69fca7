"""Every config, discovered: it resolves, builds at full size, and a shrunken copy of it takes two real steps."""

import importlib.util
from pathlib import Path

import jax
import pytest

from experiments import data, network, state
from experiments.train import train

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = sorted(f.stem for f in FOLDER.glob("*.py") if f.stem not in ("__init__", "default")) + ["vdm:small", "vdm:digits"]
# as the README and the docstrings say
PARAMETERS = {"digits": 767_297, "toy": 134_000, "density": 234_000, "fashion": 1_757_000}
PARAMETERS |= {"vdm": 35_100_000, "vdm:small": 710_000, "vdm:digits": 773_000}


def get_config(name):
    name, *argument = name.split(":")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "python -m experiments.train" in module.__doc__, "the docstring gives the command"
    return module.get_config(*argument)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if ":" in n else n for n in NAMES])
def test_config(name, tmp_path, monkeypatch):
    config = get_config(name)
    assert name in PARAMETERS
    if config.data.name == "fashion_mnist" and not data.FASHION_FOLDER.is_dir():
        use_small_fashion(monkeypatch)
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes)
    full = jax.eval_shape(lambda: state.init(config, net, dataset.shape))
    assert sum(a.size for a in jax.tree.leaves(full.params)) == pytest.approx(PARAMETERS[name], rel=0.02)
    for key, value in {"channels": 8, "width": 16, "blocks": 1, "multipliers": (1, 2), "attention": ()}.items():
        if config.model[key] is not None:
            config.model[key] = value
    config.training.update({"batch": 8, "steps": 2})
    trained = train(config, tmp_path)
    assert int(trained.step) == 2 and (tmp_path / "checkpoints" / "2").is_dir()


def use_small_fashion(monkeypatch):
    """Where the real files are missing, 16 images of their shape stand in."""
    import numpy as np

    values = np.zeros((16, 28, 28, 1), np.uint8)
    labels = np.zeros(16, np.int32)
    small = data.Dataset("fashion_mnist", {"train": values, "test": values}, {"train": labels, "test": labels}, 128.0, 128.0, 256, 10)
    monkeypatch.setitem(data.LOADERS, "fashion_mnist", lambda path: small)
