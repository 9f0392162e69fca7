"""Latent consistency models: told guidance, boundary, adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config_of, save_random

from experiments import adapters, export, network, runs, sample
from experiments.train import train
from samplers import sample as carry
from samplers import solvers
from samplers.guidance import classifier_free
from sde_lib import DDPM, VP, Denoiser, FlowMap, GaussianMixture


def test_the_boundary_is_that_of_the_jump(x64):
    """c_skip x + c_out D with LCM's scalings, sigma_d = 0.5 and 10 n at step n of 1000, is the jump to the data to 1e-5, on its 50 times."""
    sde, n = VP(), np.arange(20, 1001, 20)
    t = DDPM().time_of_step(n)
    np.testing.assert_allclose(np.diff(t), 0.02, rtol=1e-6)
    skip, out = 0.25 / ((10 * n) ** 2 + 0.25), 10 * n / np.sqrt((10 * n) ** 2 + 0.25)
    x = jax.random.normal(jax.random.key(0), (50, 3))
    fm = FlowMap(lambda x, t, s: jnp.cos(x + t[:, None]), sde, "v", final=True)
    theirs = skip[:, None] * x + out[:, None] * fm.data(x, t, 0.0)
    np.testing.assert_allclose(fm(x, t, 0.0), theirs, atol=2e-5)
    assert np.abs(fm(x, t, 0.0) - x).max() > 0.1


def test_guided_step(x64):
    """One DDIM step of the guided teacher is that with guidance of both predictions, x_0 and eps; each example has its own omega."""
    sde, none = VP(), 2
    gm = [GaussianMixture([[m, -m]], [0.5]).denoiser(sde) for m in (0.5, -0.5, 0.0)]
    fn = lambda x, t, label: jnp.stack([d.predict("v", x, t) for d in gm])[label, jnp.arange(len(x))]
    den = Denoiser(fn, sde, "v", cond=jnp.array([0, 1, 0]))
    x, omega, (t, u) = jax.random.normal(jax.random.key(0), (3, 2)), jnp.array([1.0, 3.0, 7.0]), (0.6, 0.5)
    step = carry(classifier_free(den, none, omega), x, np.array([t, u]), solvers.ddim())
    free = Denoiser(fn, sde, "v", cond=jnp.full(3, none))
    both = [getattr(free, kind)(x, t) + omega[:, None] * (getattr(den, kind)(x, t) - getattr(free, kind)(x, t)) for kind in ("data", "noise")]
    np.testing.assert_allclose(step, sde.alpha(u) * both[0] + sde.sigma(u) * both[1], rtol=1e-9)


def lcm_config(**options):
    config = config_of(num_classes=10, **options)
    config.objective.update(loss="consistency", kind="v")
    config.objective.consistency.update(step="ddim", grid="uniform", count=11, metric="huber")
    config.training.update(steps=3, checkpoint_every=3)
    config.optim.warmup = 0
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A class-conditional run, and its folder."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    config = config_of(num_classes=10)
    config.objective.update(kind="v", label_dropout=0.5)
    save_random(config, folder)
    return folder


def test_a_run_is_told_its_guidance(teacher, tmp_path):
    config = lcm_config(told_omega=True)
    config.objective.consistency.omega = (1.0, 4.0)
    config.teacher.workdir, config.training.init = str(teacher), "teacher"
    train(config, tmp_path / "run")
    run = runs.load_run(tmp_path / "run", weights="raw")
    told = run.params["Conditioning_0"]["omega"]["kernel"]
    assert float(jnp.abs(told).max()) > 0  # it begins at 0
    draw = lambda omega, steps: sample.generate(run, 4, 4, 0, guidance=omega, solver="jumps", steps=steps, grid="uniform", tolerance=1e-3)[0]
    assert draw(2.0, 2).shape == (4, 8, 8, 1)
    x, t, label = jnp.ones((4, 8, 8, 1)), jnp.full(4, 0.5), jnp.arange(4)
    jump = lambda omega: run.flow_map(label, omega)(x, t, 0.0)
    assert np.all(np.isfinite(jump(2.0))) and float(jnp.abs(jump(2.0) - jump(3.0)).max()) > 0
    with pytest.raises(ValueError, match="expected 1.0 to 4.0"):
        draw(5.0, 1)
    wrong = lcm_config()
    wrong.objective.consistency.omega = (1.0, 4.0)
    with pytest.raises(ValueError, match="told_omega = False"):
        network.from_config(wrong, 10)


def test_an_adapter_accelerates(teacher, tmp_path):
    """Trained on one run it makes a consistency function of another; what it is merged into is untouched, with a style adapter beside it."""
    config = lcm_config()
    config.teacher.update(workdir=str(teacher), guidance=2.0)
    config.lora.update(rank=2, alpha=2.0, pattern="kernel$", base=str(teacher))
    train(config, tmp_path / "lcm")
    export.write(tmp_path / "lcm", tmp_path / "exported")
    file = tmp_path / "exported" / adapters.FILE
    style = config_of(num_classes=10)
    style.objective.kind = "v"
    style.training.update(steps=2, checkpoint_every=2)
    style.lora.update(rank=2, alpha=2.0, pattern="kernel$", base=str(teacher))
    train(style, tmp_path / "style")
    export.write(tmp_path / "style", tmp_path / "exported_style")
    assert adapters.jumps(str(file)) and not adapters.jumps(str(tmp_path / "exported_style" / adapters.FILE))
    before = runs.load_run(teacher)
    with pytest.raises(ValueError, match="one time"):
        before.flow_map(jnp.arange(2))
    run = runs.adapted(before, [f"{tmp_path / 'exported_style' / adapters.FILE}:0.8", str(file)])
    values, nfe = sample.generate(run, 4, 4, 0, solver="jumps", steps=2, grid="uniform", tolerance=1e-3)
    assert values.shape == (4, 8, 8, 1) and nfe == 2
    merged, own = runs.adapted(before, [str(file)]).params, runs.load_run(tmp_path / "lcm").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged, own)
    jax.tree.map(np.testing.assert_array_equal, before.params, runs.load_run(teacher).params)
