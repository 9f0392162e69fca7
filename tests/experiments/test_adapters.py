"""Fine-tuning by an adapter: the base stays, the rest of the commands see merged weights, and adapters travel in files."""

import functools
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import default
from experiments import adapters, cli, export, network, runs, state
from experiments.train import train
from models import lora
from sde_lib import VP


def config_of(**adapter):
    config = default.get_config()
    config.data.name = "8gaussians"
    config.model.update(name="ResidualMLP", width=8, depth=2)
    config.optim.warmup = 0
    config.training.update(batch=8, steps=3)
    config.lora.update(adapter)
    return config


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(config_of(), folder)
    return folder


def test_an_adapter_of_a_run(tmp_path, base):
    """The base's arrays are untouched, and nothing of the optimizer is of their size; a run is the merged weights, and so is its export, and its
    adapter's file on the base."""
    before = runs.load_run(base).params
    config = config_of(rank=2, alpha=6.0, pattern="ResBlock.*kernel|Dense_1/kernel", base=str(base))
    trained = train(config, tmp_path / "run")
    paths = {name.rpartition("/")[0] for name in flatten_dict(trained.params, sep="/")}
    assert paths and paths < set(flatten_dict(before, sep="/"))
    moments = [leaf for leaf in jax.tree.leaves(trained.opt_state) if leaf.ndim]
    assert sum(m.size for m in moments) == 2 * sum(p.size for p in jax.tree.leaves(trained.params))
    same(runs.load_run(base).params, before)
    same(runs.load_run(tmp_path / "run" / "base").params, before)

    loaded = runs.load_run(tmp_path / "run")
    same(loaded.params, lora.merge(before, trained.ema, 3.0))
    after = flatten_dict(loaded.params, sep="/")
    for path, leaf in flatten_dict(before, sep="/").items():
        assert (path in paths) == bool(np.any(leaf != after[path])), path

    said = export.write(tmp_path / "run", tmp_path / "out")
    same(runs.load_run(tmp_path / "out").params, loaded.params)
    file = tmp_path / "out" / adapters.FILE
    assert set(said["sha256"]) == {"ema", "raw", "lora"}
    same(adapters.merged(before, str(file)), loaded.params)
    same(adapters.merged(before, f"{file}:-0.5"), lora.merge(before, trained.ema, -1.5))
    flags = [f"{file}:0.25", f"{file}:0.75"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), functools.reduce(adapters.merged, flags, before), loaded.params)


@pytest.mark.slow
def test_an_adapter_resumes_without_its_base(tmp_path, base):
    """Stopped and resumed after the base's run is gone: bit-identical to the uninterrupted run."""
    shutil.copytree(base, tmp_path / "base")
    config = config_of(rank=2, base=str(tmp_path / "base"))
    whole = train(config, tmp_path / "whole")
    with pytest.raises(cli.Stopped):
        train(config, tmp_path / "run", stop=True)
    shutil.rmtree(tmp_path / "base")
    same(train(config, tmp_path / "run"), whole)


def test_the_gradient_is_that_of_the_merged_weights():
    """A new adapter's b has a gradient, alpha/rank a^T dL/dW, and its a has none, because b is zero."""
    config = config_of(rank=2, alpha=6.0)
    net = network.from_config(config, 0)
    params = jax.tree.map(lambda p: p + 0.1, net.init(jax.random.key(0), (2,)))
    adapter = lora.init(jax.random.key(1), params, config.lora.pattern, 2)
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), np.full(4, 0.3, np.float32)
    loss = lambda params: (net(params, x, t) ** 2).sum()
    grads = flatten_dict(jax.jit(jax.grad(lambda adapter: loss(state.whole(config, adapter, params))))(adapter), sep="/")
    of_weights, factors = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/"), flatten_dict(adapter, sep="/")
    for name, grad in grads.items():
        path, _, part = name.rpartition("/")
        expected = 3.0 * factors[f"{path}/a"].T @ of_weights[path] if part == "b" else 0.0
        np.testing.assert_allclose(grad, np.broadcast_to(expected, grad.shape), rtol=1e-4, atol=1e-4)
    assert any(np.any(g) for g in grads.values())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lora.base": ""}, "rank = 2 and config.lora.base = '': expected both, or neither"),
        ({"lora.rank": 0}, "expected both, or neither"),
        ({"lora.rank": -1}, "config.lora.rank = -1: expected at least 0"),
        ({"lora.pattern": "Conv"}, "'Conv' matches no kernel: there are "),
        ({"model.width": 16}, "is not of this config's network: .* expected"),
        ({"sde.name": "VP"}, "was trained with sde = Linear"),
        ({"objective.kind": "noise"}, "was trained with kind = velocity, this config has noise"),
    ],
)
def test_what_cannot_be_adapted_is_refused(tmp_path, base, change, words):
    config = config_of(rank=2, base=str(base))
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=words):
        train(config, tmp_path)


def test_files_that_are_no_adapters_are_refused(tmp_path):
    params = {"Dense_0": {"kernel": np.zeros((4, 3), np.float32)}}
    file = tmp_path / "a:b.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file; expected a lora.safetensors"):
        adapters.merged(params, str(file))
    file.write_bytes(b"not an adapter")
    with pytest.raises(ValueError, match="is no adapter"):
        adapters.merged(params, str(file))
    options = config_of(rank=2).lora
    adapter = lora.init(jax.random.key(0), params, "kernel", 2)
    net = network.from_config(config_of(), 0)
    adapters.save(adapter, options, "0" * 64, file, net)
    same(adapters.merged(params, str(file)), params)  # with a colon in its name
    with pytest.raises(ValueError, match=r"b.safetensors:2: the LoRA's factors of Dense_0/kernel"):
        adapters.merged({"Dense_0": {"kernel": np.zeros((4, 5), np.float32)}}, f"{file}:2")
    adapters.check(f"{file}:2", net)
    for change, said in (({"kind": "noise"}, "kind = velocity, this run with noise"), ({"sde": VP()}, "sde = Linear")):
        with pytest.raises(ValueError, match=said):
            adapters.check(f"{file}:2", replace(net, **change))
    export.files.save(params, file)
    with pytest.raises(ValueError, match="is no adapter .*KeyError"):
        adapters.merged(params, str(file))
