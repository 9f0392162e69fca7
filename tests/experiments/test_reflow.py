"""Reflow: pairs of a trained run, the data set of them, and what is trained on them."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import config_of, save_random

from configs import toy
from experiments import cli, data, evaluate, network, objectives, plots, reflow, runs, sample
from experiments.guidance import guide
from experiments.train import train
from samplers import sample_adaptive

ADAPTIVE = {"solver": "adaptive", "steps": 2, "grid": "log_snr", "tolerance": 1e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A class-conditional teacher of the digits, and pairs of it with guidance."""
    folder = tmp_path_factory.mktemp("reflow")
    config = config_of(num_classes=10)
    config.objective.label_dropout = 0.5
    save_random(config, folder / "teacher")
    reflow.write(runs.load_run(folder / "teacher"), folder / "pairs", 20, 12, 8, guidance=2.0, **ADAPTIVE)
    return folder


def test_pairs_are_ends_of_the_teachers_flow(folders):
    """x_0 is the guided ODE's end from x_T = sigma(T) source; values come out as levels; a batch has the source of its examples."""
    run, pairs = runs.load_run(folders / "teacher"), data.load(ConfigDict({"name": "pairs", "path": str(folders / "pairs")}))
    for split, n in (("train", 20), ("test", 12)):
        x, source = pairs.values[split], pairs.sources[split]
        assert len(x) == len(source) == n and np.array_equal(pairs.labels[split], np.arange(n) % 10)
        expected = sample_adaptive(guide(run, 2.0).denoiser(jnp.arange(n) % 10), jnp.asarray(source), 1e-3, 1e-3).x
        np.testing.assert_allclose(x, expected, atol=1e-4)
    assert not np.allclose(pairs.sources["train"][:12], pairs.sources["test"])
    both = np.concatenate([pairs.sources["train"], pairs.sources["test"]])
    assert abs(both.mean()) < 3 / np.sqrt(both.size) and abs(both.std() - 1) < 3 / np.sqrt(2 * both.size)  # 2048 numbers, seed 0
    assert pairs.from_x(x).dtype == np.uint8 and pairs.images.is_image and pairs.num_classes == 10 and pairs.shape == (8, 8, 1)
    assert data.reference(pairs).name == "digits" and data.empty("pairs", json.loads(json.dumps(pairs.facts))).images.levels == 17
    batch = data.Batches(pairs, 8, 0)[1]
    index = data.Batches(pairs, 8, 0).index(batch["position"].astype(int))
    assert np.array_equal(batch["source"], pairs.sources["train"][index]) and np.array_equal(batch["value"], pairs.values["train"][index])


def test_an_interrupted_command_goes_on(folders, tmp_path, monkeypatch):
    """After two batches, with other batches: the same bytes, of which those that were there are not computed again."""
    run, write_text, written = runs.load_run(folders / "teacher"), reflow.write_text, []

    def interrupted(path, text):
        write_text(path, text)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(reflow, "write_text", interrupted)
    options = {"guidance": 2.0, **ADAPTIVE}
    with pytest.raises(KeyboardInterrupt):
        reflow.write(run, tmp_path / "pairs", 20, 12, 8, **options)
    about = reflow.write(run, tmp_path / "pairs", 20, 12, 8, **options)
    assert len(written) == 2 + 1 + 2
    whole = json.loads((folders / "pairs" / "pairs.json").read_text())
    assert json.loads(json.dumps(about)) == whole and whole["nfe"] > 10
    for name in ("x", "source", "y", "x_test", "source_test", "y_test"):
        assert (tmp_path / "pairs" / f"{name}.npy").read_bytes() == (folders / "pairs" / f"{name}.npy").read_bytes()


def test_loss_is_the_regression_on_the_chord(folders):
    """The loss of a batch of pairs is that of F(x_t) on x_T - x_0 with x_t between both; without its source it is another."""
    config = config_of()
    config.data.update(name="pairs", path=str(folders / "pairs"))
    pairs = data.load(config.data)
    net = network.from_config(config, pairs.num_classes)
    params, batch = net.init(jax.random.key(0), pairs.shape), data.Batches(pairs, 8, 0)[0]
    params = jax.tree.map(lambda a: a + 0.1, params)
    key = jax.random.key(1)
    found = objectives.loss(net, params, pairs, config.objective, key, batch)
    u = objectives.low_discrepancy(batch["position"], jax.random.bits(jax.random.split(key, 4)[3]))
    t = jnp.clip(objectives.uniform(u, net.sde, None), net.sde.eps, 1 - net.sde.eps)[:, None, None, None]
    error = net(params, (1 - t) * batch["value"] + t * batch["source"], t[:, 0, 0, 0]) - (batch["source"] - batch["value"])
    np.testing.assert_allclose(found, jnp.mean(error**2, (1, 2, 3)), rtol=1e-4)
    del batch["source"]
    assert np.abs(found - objectives.loss(net, params, pairs, config.objective, key, batch)).max() > 0.1


@pytest.mark.slow
def test_reflow_again(folders, tmp_path):
    """A run on pairs is one like others: it samples levels, is judged against the digits, and has pairs of its own."""
    config = config_of()
    config.data.update(name="pairs", path=str(folders / "pairs"))
    train(config, tmp_path / "two")
    run = runs.load_run(tmp_path / "two")
    about = reflow.write(run, tmp_path / "pairs", 8, 8, 8, **ADAPTIVE)
    assert about["of"]["name"] == "digits" and about["sha256"] == run.fingerprint()
    again = data.load(ConfigDict({"name": "pairs", "path": str(tmp_path / "pairs")}))
    assert again.images.levels == 17 and np.all(again.labels["train"] == 0)
    figures = evaluate.measures(data.reference(run.dataset), 100)(again.from_x(again.values["test"]), None)
    assert np.isfinite(figures["sliced W2"])


@pytest.mark.slow
def test_rounds(tmp_path):
    """Two rounds: each flow begins at the weights of the one before, and is trained on that one's pairs; the same command does nothing anew."""
    save_random(config_of(), tmp_path / "teacher")
    teacher, options = runs.load_run(tmp_path / "teacher"), {"num": 8, "held_out": 4, "batch": 4, **ADAPTIVE}
    last = reflow.rounds(teacher, tmp_path / "out", 2, 2, **options)
    one, two = tmp_path / "out" / "rectified_2", tmp_path / "out" / "rectified_3"
    assert last.workdir == two and last.step == 2 and last.config.training.init == str(one)
    of = lambda k: json.loads((tmp_path / "out" / f"pairs_{k}" / "pairs.json").read_text())["sha256"]
    assert of(1) == teacher.fingerprint() and of(2) == runs.load_run(one).fingerprint() != of(1)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    again = reflow.rounds(teacher, tmp_path / "out", 2, 2, **options)
    assert again.fingerprint() == last.fingerprint() and files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    for other in ({"num": 12}, {"seed": 5}, {"solver": "heun"}):
        with pytest.raises(ValueError, match=f"pairs_1 is there and has another {next(iter(other))}"):
            reflow.rounds(teacher, tmp_path / "out", 2, 2, **options | other)
    reflow.rounds(teacher, tmp_path / "out", 2, 2, **options | {"batch": 8})


def test_rounds_are_of_the_path_between_pairs(tmp_path):
    """Of a joined interpolant, too: its noise is in the ends of the pairs already."""
    config = toy.get_config("moons")
    config.model.update(width=8, depth=1)
    config.coupling.update(name="sinkhorn", regularization=1.0, constant=0.5, bridge=1.0)
    config.training.batch = 8
    save_random(config, tmp_path / "run")
    found = reflow.rounds(runs.load_run(tmp_path / "run"), tmp_path / "out", 1, 2, num=8, held_out=4, batch=4, **ADAPTIVE)
    assert found.network.interpolant is None and found.step == 2


def test_samples_of_pairs_are_drawn_beside_what_their_model_was_trained_on(tmp_path):
    """In the plane: pairs have no examples of their own to show. Where those are not here, samples are drawn alone."""
    config = toy.get_config("moons")
    config.model.update(width=8, depth=1)
    save_random(config, tmp_path / "teacher")
    teacher = runs.load_run(tmp_path / "teacher")
    reflow.write(teacher, tmp_path / "pairs", 8, 4, 4, **ADAPTIVE)
    pairs = data.load(ConfigDict({"name": "pairs", "path": str(tmp_path / "pairs")}))
    np.testing.assert_array_equal(data.shown(pairs), teacher.dataset.values["test"])
    run = replace(teacher, dataset=pairs)
    assert [file.exists() for file in sample.pictures(guide(run), np.zeros((4, 2)), "it", 0, **ADAPTIVE)] == [True]
    lost = replace(
        pairs, about=pairs.about | {"of": pairs.about["of"] | {"config": {"name": "folder", "path": str(tmp_path / "nowhere"), "size": 8}}}
    )
    assert data.shown(lost).shape == (0, 2)
    assert plots.scatter(pairs.values["train"], data.shown(lost), tmp_path / "alone.png").exists()


def test_rounds_that_cannot_be_trained_are_refused_at_once(tmp_path):
    config = config_of(second_time=True)
    config.objective.loss = "meanflow"
    save_random(config, tmp_path / "run")
    with pytest.raises(ValueError, match="expected regression"):
        reflow.rounds(runs.load_run(tmp_path / "run"), tmp_path / "out", 1, 2, num=8, held_out=4, batch=4, **ADAPTIVE)
    config = config_of()
    save_random(config, tmp_path / "adapter")
    adapter = runs.load_run(tmp_path / "adapter")
    adapter.config.lora.rank = 2
    with pytest.raises(ValueError, match="lora.rank = 2"):
        reflow.rounds(adapter, tmp_path / "out", 1, 2, num=8, held_out=4, batch=4, **ADAPTIVE)
    assert not (tmp_path / "out").exists()


def test_rounds_stop_between_batches(tmp_path):
    """What is there is kept: the same command has the same pairs."""
    save_random(config_of(), tmp_path / "teacher")
    teacher, options = runs.load_run(tmp_path / "teacher"), {"num": 8, "held_out": 4, "batch": 4, **ADAPTIVE}
    with pytest.raises(cli.Stopped, match="stopped at 4 of 8"):
        reflow.rounds(teacher, tmp_path / "out", 1, 2, True, **options)
    about = reflow.write(teacher, tmp_path / "out" / "pairs_1", **options)
    assert about["num"] == 8 and not (tmp_path / "out" / "pairs_1.tmp").exists()


@pytest.mark.slow
def test_interpolants(tmp_path):
    """One of constant noise begins at N(0, sigma(T)^2 + constant^2), and its pairs have that in units of it; one that begins at other data has
    none, by the library as by the command."""
    config = toy.get_config("moons")
    config.model.update(width=8, depth=1)
    config.coupling.constant = 0.75
    save_random(config, tmp_path / "run")
    run = runs.load_run(tmp_path / "run")
    reflow.write(run, tmp_path / "pairs", 4, 4, 4, **ADAPTIVE)
    x, source = (np.load(tmp_path / "pairs" / f"{name}.npy") for name in ("x", "source"))
    for std, near in ((1.25, True), (1.0, False)):
        assert np.allclose(sample_adaptive(run.denoiser(), std * source, 1e-6, 1e-6).x, x, atol=1e-3) == near
    config.coupling.source.name = "8gaussians"
    save_random(config, tmp_path / "joined")
    with pytest.raises(ValueError, match="goes from 8gaussians to"):
        reflow.write(runs.load_run(tmp_path / "joined"), tmp_path / "none", 4, 4, 4, **ADAPTIVE)


def test_pairs_without_labels_are_of_no_class(tmp_path):
    """An unconditional model of labelled data: its pairs have no labels, so that no conditional model is trained on zeros; an older folder,
    which does not say so, likewise."""
    save_random(config_of(), tmp_path / "run")
    reflow.write(runs.load_run(tmp_path / "run"), tmp_path / "pairs", 4, 2, 4, **ADAPTIVE | {"solver": "ddim"})
    config = config_of(num_classes=10)
    config.data.update(name="pairs", path=str(tmp_path / "pairs"))
    for older in (False, True):
        if older:
            about = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
            (tmp_path / "pairs" / "pairs.json").write_text(json.dumps({key: value for key, value in about.items() if key != "labelled"}))
            data._pairs.cache_clear()
        with pytest.raises(ValueError, match="config.model.num_classes = 10: the data set has 0 classes"):
            train(config, tmp_path / "student")


def test_mistakes_are_named(folders, tmp_path):
    run, path = runs.load_run(folders / "teacher"), str(folders / "pairs")
    write = lambda out=tmp_path / "x", num=4, held_out=4, **options: reflow.write(run, out, num, held_out, 4, **{**ADAPTIVE, **options})
    for bad, words in (
        (lambda: write(num=0), "--num=0"),
        (lambda: write(solver="reverse_sde", steps=3), "draws noise"),
        (lambda: write(solver="bridge", steps=3), "draws noise"),
        (lambda: write(solver="ancestral", steps=3), "draws noise"),
        (lambda: write(solver="ddim", steps=3, option=("eta=1",)), "draws noise"),
        (lambda: write(solver="ddim", steps=3, corrector="langevin"), "draws noise"),
        (lambda: write(out=folders / "pairs"), "exists"),
        (lambda: data.load(ConfigDict({"name": "pairs", "path": str(tmp_path)})), "experiments.reflow"),
        (lambda: data.load(ConfigDict({"name": "pairs", "path": path, "flip": True})), "neither of pairs"),
        (lambda: data.load(ConfigDict({"name": "pairs", "path": path, "augment": 0.1})), "neither of pairs"),
    ):
        with pytest.raises((ValueError, OSError), match=words):
            bad()


def test_pairs_that_are_not_finite_are_refused(folders, tmp_path):
    """Weights that are not numbers make no pairs: one line, and no folder."""
    run = runs.load_run(folders / "teacher")
    broken = replace(run, params=jax.tree.map(lambda a: a * np.nan, run.params))
    with pytest.raises(ValueError, match="4 of 4 pairs are not finite"):
        reflow.write(broken, tmp_path / "pairs", 4, 2, 4, **ADAPTIVE | {"solver": "ddim"})
    assert not (tmp_path / "pairs").exists()
