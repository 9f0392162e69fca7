"""PeRFlow against closed forms, and distillation as a command runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import config_of, save_random

from configs import toy
from experiments import objectives, perflow, runs, sample, train
from samplers import grids, solvers
from samplers import sample as carry
from samplers.straightness import chord
from sde_lib import VP, Denoiser, GaussianMixture, Linear

STD = 0.5
SDES = {"velocity": Linear(), "noise": VP()}
OPTIONS = lambda windows=4, steps=8: ConfigDict({"windows": windows, "steps": steps})


def exact(sde) -> Denoiser:
    return GaussianMixture(np.zeros((1, 1)), np.array([STD])).denoiser(sde)


def scale(sde, t):
    """Of the exact flow at t, which is linear."""
    return jnp.sqrt((sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2)


def student(sde, kind, windows=4) -> Denoiser:
    """PeRFlow of the exact flow of N(0, STD^2): the regression is on a function of x_t, so that the student is that function."""

    def predict(x, t):
        end, start = perflow.window(sde, windows, t)
        x0, noise = chord(sde, scale(sde, start)[:, None], start, scale(sde, end)[:, None], end)
        c, d = {"velocity": (sde.alpha_dot(t), sde.sigma_dot(t)), "noise": (0.0, 1.0)}[kind]
        point = lambda c, d: jnp.reshape(c, (-1, 1)) * x0 + jnp.reshape(d, (-1, 1)) * noise
        return x * point(c, d) / point(sde.alpha(t), sde.sigma(t))

    return Denoiser(predict, sde, kind)


@pytest.mark.parametrize("kind", SDES)
def test_check_8(x64, kind):
    """K = 4 windows of the exact flow: one step for a window ends where the flow does to 1e-10, and so do two; of the teacher four end .159 off."""
    sde, x_T = SDES[kind], jnp.array([[1.0], [-2.0]])
    truth = scale(sde, 0.0) / scale(sde, sde.T) * x_T
    one = lambda den, steps: carry(den, x_T, np.append(grids.few(sde, steps - 1), 0.0), solvers.ddim())
    for steps in (4, 8):
        np.testing.assert_allclose(one(student(sde, kind), steps), truth, rtol=1e-10)
    assert np.abs(one(student(sde, kind), 6) / truth - 1).min() > 1e-3  # steps across an edge
    if kind == "velocity":
        euler = carry(exact(sde), x_T, np.append(grids.few(sde, 3), 0.0), solvers.euler())
        assert abs(abs(euler[0] - truth[0])[0] - 0.159459) < 1e-6


@pytest.mark.parametrize("kind", SDES)
def test_ends_of_the_windows(x64, kind):
    """The pair of each window is that of the exact flow's ends, to the order of the teacher's DDIM; times at an edge are of the window before it."""
    sde, t = SDES[kind], jnp.array([1.0, 0.8, 0.75, 0.5 + 1e-9, 0.25, 1e-5])
    end, start = perflow.window(sde, 4, t)
    np.testing.assert_allclose(jnp.stack([end, start]), np.array([[3, 3, 2, 1, 0, 0], [4, 4, 3, 2, 1, 1]]) / 4)
    x0, noise = (jax.random.normal(key, (6, 1)) for key in jax.random.split(jax.random.key(0)))
    z = sde.alpha(start)[:, None] * x0 + sde.sigma(start)[:, None] * noise
    expected = jnp.stack(chord(sde, z, start, z * (scale(sde, end) / scale(sde, start))[:, None], end))
    errors = [float(jnp.abs(jnp.stack(perflow.ends(exact(sde), OPTIONS(4, n), x0, noise, t)) - expected).max()) for n in (8, 64, 128)]
    assert errors[2] < 0.02 < 0.02 + errors[2] < errors[0] + 0.02 and 1.7 < errors[1] / errors[2] < 2.3


@pytest.mark.slow
def test_loss_vanishes_at_the_student():
    """The loss at the exact student, of a teacher of many steps, is 0; at the teacher itself it is not."""
    sde, x0 = Linear(), STD * jax.random.normal(jax.random.key(0), (64, 1))
    x0, noise = perflow.ends(exact(sde), OPTIONS(4, 256), x0, jax.random.normal(jax.random.key(1), (64, 1)), t := jnp.linspace(0.01, 1, 64))
    x_t = (1 - t)[:, None] * x0 + t[:, None] * noise
    error = lambda den: float(jnp.mean((den.velocity(x_t, t) - (noise - x0)) ** 2))
    assert error(student(sde, "velocity")) < 1e-5 < 1e-3 < error(exact(sde))


@pytest.mark.slow
def test_distillation_as_a_run(tmp_path, monkeypatch):
    """A class-conditional student of a guided teacher begins from its weights, resumes without it, samples in windows, and has a likelihood."""
    teacher = config_of(num_classes=10)
    teacher.objective.label_dropout = 0.5
    save_random(teacher, tmp_path / "teacher")
    config = config_of(num_classes=10, second_time=True)
    config.objective.loss, config.training.init = "perflow", "teacher"
    config.objective.perflow.update(windows=2, steps=3)
    config.teacher.update(workdir=str(tmp_path / "teacher"), guidance=3.0)
    seen, loss = [], objectives.loss
    monkeypatch.setattr(objectives, "loss", lambda *args: seen.append(args) or loss(*args))
    train.train(config, tmp_path / "student")
    teacher = seen[0][6].teacher
    assert teacher.guided and teacher.cond is None and seen[0][0].windows == 2
    (tmp_path / "teacher").rename(tmp_path / "moved")
    config.training.steps = 6
    assert int(train.train(config, tmp_path / "student").step) == 6
    run, before = runs.load_run(tmp_path / "student", weights="raw"), runs.load_run(tmp_path / "moved")
    drifted = [float(jnp.abs(a - run.params[name][kind]).max()) for name, of in before.params.items() if "Dense" in name for kind, a in of.items()]
    assert len(drifted) > 4 and max(drifted) < 0.05  # six steps of 1e-3 at most
    values, nfe = sample.generate(run, 4, 4, 0, solver="euler", steps=2, grid="few", tolerance=1e-3)
    assert values.shape == (4, 8, 8, 1) and nfe == 2 and not run.network.jumps
    x_T = run.network.sde.prior_sample(jax.random.key(0), (4, 8, 8, 1))
    values, nfe = sample.generate(run, 4, 4, 0, solver="euler", steps=1, grid="few", tolerance=1e-3)
    assert nfe == 1 and run.denoiser(jnp.zeros(4, int)).coupled
    den, times = run.denoiser(jnp.arange(4)), np.array([1.0, 0.5, 0.0])
    maps = run.network.flow_map(run.params, jnp.arange(4))
    jumped = maps(maps(x_T, 1.0, 0.5), 0.5, 0.0)
    np.testing.assert_allclose(carry(den, x_T, times, solvers.euler()), jumped, atol=1e-5)
    with pytest.raises(ValueError, match="coupled"):
        carry(den, x_T, times[:2], solvers.ancestral(), key=jax.random.key(0))


@pytest.mark.parametrize("coupling", [{"name": "ot"}, {"constant": 0.1}, {"source": {"name": "8gaussians"}}], ids=str)
def test_teachers_of_other_noise_are_refused(tmp_path, coupling):
    """Which have not seen data with independent noise."""
    joined = toy.get_config("moons")
    joined.model.update(width=8, depth=1)
    config = joined.copy_and_resolve_references()
    joined.coupling.update(coupling)
    save_random(joined, tmp_path / "joined")
    config.objective.loss, config.teacher.workdir = "perflow", str(tmp_path / "joined")
    with pytest.raises(ValueError, match="trained on noise that is joined with the data"):
        train.train(config, tmp_path / "student")


def test_mistakes_are_named(tmp_path):
    teacher = config_of()
    save_random(teacher, tmp_path / "teacher")

    def config(**teacher):
        chosen = config_of(second_time=True)
        chosen.objective.loss = "perflow"
        chosen.teacher.update(workdir=str(tmp_path / "teacher"), **teacher)
        return chosen

    other, none, init, vp, zero = config(), config(), config(), config(), config()
    other.objective.loss, none.teacher.workdir, vp.sde.name, zero.objective.perflow.windows = "regression", "", "VP", 0
    init.training.init = str(tmp_path / "nothing")
    for bad, words in (
        (other, "by their step consistency and scm"),
        (none, "expected a teacher"),
        (init, "expected a --workdir made by"),
        (vp, "sde = "),
        (zero, "windows = 0"),
        (config(guidance=2.0), "unconditional"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            train.train(bad, tmp_path / "student")
        assert not (tmp_path / "student").exists()
