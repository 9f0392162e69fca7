"""Training on an encoder's embeddings: from an npz to guided samples, hidden as zeros, by the example's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from experiments import data, export, network, objectives, runs, sample
from experiments.train import train

RNG = np.random.default_rng(0)
ARRAYS = {"x": RNG.normal(size=(40, 4, 4, 2)), "tokens": RNG.normal(size=(40, 3, 5)).astype(np.float16), "pooled": RNG.normal(size=(40, 7))}
OPTIONS = {"solver": "euler", "steps": 2, "grid": "log_snr", "tolerance": 1e-3}


@pytest.fixture(autouse=True)
def forget():
    data._images.cache_clear()


def config_of(file, **model):
    config = default.get_config()
    config.data.update(name="npz", path=str(file))
    config.model.update(name="MMDiT", width=16, depth=1, num_heads=2, **model)
    config.objective.label_dropout = 0.5
    config.training.update(batch=8, steps=2)
    return config


def test_batches_carry_the_embeddings_of_their_examples(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    d = data.load(ConfigDict({"name": "npz", "path": str(tmp_path / "a.npz")}))
    assert d.embeddings == (3, 5, 7) and d.num_classes == 0
    np.testing.assert_array_equal(d.labels["test"][0], ARRAYS["tokens"][[19, 39]])
    batch = next(data.batches(d, 16, 0))
    for value, tokens, pooled in zip(batch["value"], *batch["label"]):
        i = np.flatnonzero(np.isclose(ARRAYS["x"], d.raw(value), atol=1e-6).all((1, 2, 3))).item()
        np.testing.assert_array_equal(tokens, ARRAYS["tokens"][i])
        np.testing.assert_array_equal(pooled, ARRAYS["pooled"][i])


def test_hidden_embeddings_are_zeros(tmp_path):
    """The loss is that with an example's own embeddings, or with zeros in a share of label_dropout: of 64 examples, within 4 standard errors (16)."""
    np.savez(tmp_path / "a.npz", **ARRAYS)
    config = config_of(tmp_path / "a.npz", embeddings=(3, 5, 7))
    d = data.load(config.data)
    net = network.from_config(config, 0, d.embeddings)
    params = jax.tree.map(lambda p: p + 0.1, jax.jit(lambda: net.init(jax.random.key(0), d.shape))())
    batch = next(data.batches(d, 64, 0))
    of_share = lambda share: ConfigDict({**config.objective.to_dict(), "label_dropout": share})
    loss = jax.jit(lambda batch, share: objectives.loss(net, params, d, of_share(share), jax.random.key(1), batch))
    half, shown, hidden = (np.asarray(loss(batch, share)) for share in (0.5, 0.0, 1.0))
    zeros = np.asarray(loss(batch | {"label": jax.tree.map(jnp.zeros_like, batch["label"])}, 0.0))
    np.testing.assert_allclose(hidden, zeros, rtol=1e-5)
    assert np.abs(shown - hidden).min() > 0
    nearer = np.abs(half - shown) < np.abs(half - hidden)
    np.testing.assert_allclose(half, np.where(nearer, shown, hidden), rtol=1e-5)
    assert abs(nearer.sum() - 32) < 16


@pytest.mark.slow
def test_from_a_file_to_guided_samples(tmp_path):
    """Samples take the embeddings of the test set in turn, or of one example; guidance and other embeddings change them; a batch does not."""
    file = tmp_path / "a.npz"
    np.savez(file, **ARRAYS)
    config = config_of(file, embeddings=(3, 5, 7))
    config.optim.update(warmup=0, learning_rate=0.1, ema=0.0)
    train(config, tmp_path / "run")
    run = runs.load_run(tmp_path / "run")
    draw = lambda n=4, batch=4, label=-1, guidance=1.0: sample.generate(run, n, batch, 0, label, guidance, **OPTIONS)[0]
    turns, zero, one = draw(), draw(label=0), draw(label=1)
    np.testing.assert_allclose(turns[::2], zero[::2], atol=1e-4)
    np.testing.assert_allclose(turns[1::2], one[1::2], atol=1e-4)
    np.testing.assert_allclose(draw(3, 2), turns[:3], atol=1e-4)
    assert np.abs(one - zero).max() > 1e-3 and np.abs(draw(guidance=3.0) - turns).max() > 1e-3
    with pytest.raises(ValueError, match="--label=2: expected 0 to 1"):
        draw(label=2)
    export.write(tmp_path / "run", tmp_path / "out")
    file.unlink()
    data._images.cache_clear()
    with pytest.raises(ValueError, match="samples need those of its data"):
        runs.load_run(tmp_path / "out").labels(2)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pooled": None}, "embeddings without pooled"),
        ({"y": np.arange(40) % 3}, "expected y, or tokens and pooled"),
        ({"tokens": np.zeros((39, 3, 5))}, r"has tokens .* to train: expected \[38, ...\]|to test"),
        ({"pooled": np.zeros((40, 7, 1))}, "tokens .n, L, E. and pooled .n, P."),
        ({"pooled": np.full((40, 7), np.nan)}, r"pooled\[0\] and 39 more of 40 examples has the value nan"),
        ({"x_test": ARRAYS["x"][:3]}, "embeddings without tokens_test"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, change, words):
    np.savez(tmp_path / "a.npz", **{name: a for name, a in (ARRAYS | change).items() if a is not None})
    with pytest.raises(ValueError, match=words):
        data.load(ConfigDict({"name": "npz", "path": str(tmp_path / "a.npz")}))


def test_a_model_of_other_embeddings_is_refused(tmp_path):
    config = config_of(tmp_path, embeddings=(3, 5, 8))
    for asked, found in (((3, 5, 7), r"\(3, 5, 8\): the data set has \(3, 5, 7\)"), ((), "the data set has none")):
        with pytest.raises(ValueError, match=found):
            network.from_config(config, 0, asked)
