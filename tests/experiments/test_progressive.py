"""Progressive distillation against its fixed point, and as a command runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import config_of, save_random

from experiments import network, progressive, runs, sample
from experiments.train import train
from samplers import sample as carry
from samplers import solvers
from sde_lib import VP, Denoiser, GaussianMixture, Linear, Trig


@pytest.mark.parametrize("path", [VP(), Linear(), Trig()], ids=lambda sde: type(sde).__name__)
def test_fixed_point(x64, path):
    """One DDIM step at x~ ends where two of the teacher do; the loss is 0 there, and not at the teacher."""
    teacher, steps = GaussianMixture([[0.3, -0.2], [-0.5, 0.4]], [0.3, 0.5]).denoiser(path), 4
    keys = jax.random.split(jax.random.key(0), 2)
    x0, noise, u = *(jax.random.normal(key, (32, 2)) for key in keys), (jnp.arange(32) + 0.5) / 32
    t = path.T * (1 + jnp.floor(u * steps)) / steps
    student = Denoiser(lambda x, t: progressive.target(teacher, steps, x, t), path, "data")
    for k in range(steps):
        times = path.T * np.array([k + 1, k + 0.5, k]) / steps
        x = x0[t == times[0]]
        np.testing.assert_allclose(carry(student, x, times[[0, 2]], solvers.ddim()), carry(teacher, x, times, solvers.ddim()), rtol=1e-9, atol=1e-12)
    loss = lambda den: float(progressive.loss(den, teacher, x0, noise, u, ConfigDict({"steps": steps})).mean())
    assert loss(student) < 1e-20 and loss(teacher) > 1e-4
    whole = carry(student, noise, path.T * np.arange(steps, -1, -1) / steps, solvers.ddim())
    np.testing.assert_allclose(
        whole, carry(teacher, noise, path.T * np.arange(2 * steps, -1, -1) / (2 * steps), solvers.ddim()), rtol=1e-8, atol=1e-10
    )


def test_rounds(tmp_path):
    """Each round is taught by the one before; the last samples by one step, as an ODE only."""
    save_random(config_of(), tmp_path / "teacher")
    config = config_of()
    config.objective.loss, config.training.init, config.training.steps = "progressive", "teacher", 2
    config.objective.progressive.update(start=4, steps=1)
    config.teacher.workdir = str(tmp_path / "teacher")
    for own, folder in progressive.rounds(config, tmp_path / "run"):
        train(own, folder)
    taught = [runs.load_run(tmp_path / "run" / f"steps_{n}").config.teacher.workdir for n in (4, 2, 1)]
    assert taught == [str(tmp_path / "teacher"), str(tmp_path / "run" / "steps_4"), str(tmp_path / "run" / "steps_2")]
    run = runs.load_run(tmp_path / "run" / "steps_1")
    values, nfe = sample.generate(run, 4, 4, 0, solver="ddim", steps=1, grid="few", tolerance=1e-3)
    assert values.shape == (4, 8, 8, 1) and nfe == 1
    with pytest.raises(ValueError, match="coupled"):
        run.denoiser().score(jnp.ones((1, 8, 8, 1)), 0.5)


def test_mistakes():
    config = config_of()
    config.objective.loss = "progressive"
    config.objective.progressive.update(start=6, steps=2)
    with pytest.raises(ValueError, match="start = 6"):
        network.from_config(config, 10)
