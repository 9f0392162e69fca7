"""Noise-conditional classifiers trained as any run, and the flags of guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import MODEL, small_config

from configs import classifier as config_of
from experiments import guidance, objectives, runs, sample
from experiments.tables._training import digits_run
from experiments.train import train

OPTIONS = {"solver": "euler", "steps": 4, "grid": "uniform", "tolerance": 1e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model without labels and one with them, on the path of configs/default.py."""
    folder = tmp_path_factory.mktemp("runs")
    train(small_config(steps=4), folder / "plain")
    told = small_config(steps=60)
    told.optim.learning_rate = 1e-2
    told.model = {**MODEL, "num_classes": 10}
    told.objective.label_dropout = 0.1
    train(told, folder / "told")
    return folder


@pytest.fixture(scope="module")
def classifier(folders):
    """A classifier on the same path."""
    config = config_of.get_config()
    config.sde.name = "Linear"
    config.model.update(channels=8, blocks=1, attention=(), dropout=0.0)
    config.optim.update(learning_rate=5e-3, warmup=0, ema=0.5)
    config.training.update(batch=64, steps=200, log_every=20, checkpoint_every=200)
    train(config, folders / "classifier")
    return str(folders / "classifier")


@pytest.mark.slow
def test_classifier_learns_from_noised_images(classifier):
    """In 200 steps well below log 10 nats where there is little noise, and near it at the prior, where there is nothing to know."""
    run = runs.load_run(classifier)
    values, labels = run.dataset.values["test"][:200], jnp.asarray(run.dataset.labels["test"][:200])
    x0 = run.dataset.to_x(jax.random.split(jax.random.key(0), 200), values)

    def nats(t):
        x, _ = run.network.sde.perturb(jax.random.key(1), x0, t)
        return -np.mean(run.network(run.params, x, jnp.full(200, t), labels))

    assert nats(0.05) < 1.2 and abs(nats(0.999) - np.log(10)) < 0.3, (nats(0.05), nats(0.999))
    batch = {"value": values[:8], "label": labels[:8], "position": jnp.arange(8)}
    of = (run.network, run.params, run.dataset, run.config.objective, jax.random.key(2))
    loss = lambda rows: objectives.loss(*of, {name: part[rows] for name, part in batch.items()})
    np.testing.assert_allclose(loss(np.arange(3, 5)), loss(np.arange(8))[3:5], rtol=1e-4, atol=1e-5)  # no batch-mates in it


@pytest.mark.slow
def test_classifier_leads_to_its_class(folders, classifier):
    """At a scale of 20 it is surer of the label than at 0, which is no guidance; samples have no batch-mates."""
    run, by = runs.load_run(folders / "plain"), runs.load_run(classifier)
    flags = {"classifier": classifier}
    draw = lambda scale, n: sample.generate(run, n, 16, 0, **OPTIONS, **flags, classifier_scale=scale)[0]
    labels = jnp.arange(16) % 10
    np.testing.assert_array_equal(guidance.guide(run, **flags).labels(16), labels)
    np.testing.assert_array_equal(guidance.guide(run, **flags).labels(2, 7), [7, 7])
    with pytest.raises(ValueError, match="--label=10: expected 0 to 9"):
        guidance.guide(run, **flags).labels(2, 10)

    def nats(values):
        x = run.dataset.to_x(jax.random.split(jax.random.key(0), 16), values)
        return -np.mean(by.network(by.params, x, jnp.full(16, 0.05), labels))

    strong, none = draw(20.0, 16), draw(0.0, 16)
    assert nats(strong) < nats(none) - 0.5
    assert np.mean(draw(20.0, 10) != strong[:10]) < 5e-3
    np.testing.assert_array_equal(none, sample.generate(run, 16, 16, 0, **OPTIONS)[0])


def test_flags_choose_their_guidance(folders):
    """Each changes the samples of a conditional run, and none does what another does."""
    run = runs.load_run(folders / "told")
    ways = [
        {},
        {"guidance": 4.0},
        {"guidance": 4.0, "guidance_interval": ["0.3", "2"]},
        {"guidance": 4.0, "guidance_rescale": 0.7},
        {"guidance": 4.0, "guidance_kind": "rectified"},
        {"guidance": 4.0, "autoguidance": f"{folders / 'plain'},4"},
    ]
    drawn = [sample.generate(run, 4, 4, 0, **OPTIONS, **way)[0].astype(int) for way in ways]
    for i, a in enumerate(drawn):
        assert all(np.any(a != b) for b in drawn[:i]), ways[i]


@pytest.mark.parametrize(
    "run, flags, words",
    [
        ("plain", {"guidance": 2.0}, "unconditional"),
        ("told", {"guidance_rescale": 0.7}, "no guidance that it could be of"),
        ("told", {"guidance": 2.0, "guidance_interval": ["1"]}, "expected LO,HI"),
        ("told", {"guidance": 2.0, "guidance_kind": "rectified", "guidance_rescale": 0.5}, "leave one out"),
        ("told", {"guidance": 2.0, "guidance_kind": "rectified", "solver": "adaptive"}, "expected a --solver of a fixed --grid"),
        ("told", {"guidance": 2.0, "guidance_rescale": 0.5, "solver": "amed"}, "fitted to the model with --guidance alone"),
        ("told", {"autoguidance": "plain"}, "no effect at --guidance=1"),
        ("told", {"guidance": 2.0, "autoguidance": "plain,last"}, "WORKDIR,CHECKPOINT"),
        ("plain", {"guidance": 2.0, "autoguidance": "told"}, "worse run of the kind"),
        ("plain", {"classifier": "told"}, "is no classifier"),
        ("plain", {"classifier_scale": 2.0}, "expected a --classifier"),
    ],
)
def test_senseless_flags_are_refused(folders, run, flags, words):
    flags = {name: str(folders / value) if name in ("autoguidance", "classifier") else value for name, value in flags.items()}
    with pytest.raises(ValueError, match=words):
        sample.generate(runs.load_run(folders / run), 2, 2, 0, **OPTIONS | flags)


@pytest.mark.slow
def test_a_classifier_does_not_generate(classifier, start):
    done = start("experiments.sample", f"--workdir={classifier}")
    assert done.wait() == 1 and "is a classifier" in done.said, done.said
    with pytest.raises(ValueError, match="is a classifier"):
        digits_run(classifier)
