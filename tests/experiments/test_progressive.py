"""Progressive distillation against closed forms, and as the command runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import config_of, save_random

from experiments import data, network, progressive, runs, sample, state, toy
from experiments.train import train
from samplers import sample as carry
from samplers import sample_adaptive, solvers
from sde_lib import VE, VP, Denoiser, GaussianMixture, Trig
from sde_lib.numerics import expand

STD, COUNT = 0.8, 4


def gaussian():
    return GaussianMixture([[0.3, -0.2]], [STD])


def begun(sde):
    """x at the times at which the steps begin, and the times; T itself but where alpha is 0."""
    t = jnp.asarray(sde.T * np.arange(1, COUNT + 1) / COUNT)
    return sde.perturb(jax.random.key(0), gaussian().sample(jax.random.key(1), COUNT), t)[0], t


@pytest.mark.few_paths
def test_one_step_is_the_teachers_two(sde, x64):
    """DDIM's step with x~ leads to where two of the teacher's do, and x~ is that of the paper's difference, (x'' - k x)/(alpha'' - k alpha)."""
    x, t = begun(sde)
    teacher = gaussian().denoiser(sde)
    data = progressive.target(teacher, COUNT, x, t)
    noise = (x - expand(sde.alpha(t), x) * data) / expand(sde.sigma(t), x)
    times = sde.T * np.arange(2 * COUNT + 1) / (2 * COUNT)
    for i in range(COUNT):
        at, end = times[2 * i + 2], times[2 * i]
        two = carry(teacher, x[i : i + 1], times[2 * i : 2 * i + 3][::-1], solvers.ddim())[0]
        np.testing.assert_allclose(sde.alpha(end) * data[i] + sde.sigma(end) * noise[i], two, atol=1e-9)
        k = sde.sigma(end) / sde.sigma(at)
        np.testing.assert_allclose(data[i], (two - k * x[i]) / (sde.alpha(end) - k * sde.alpha(at)), atol=1e-9)
        assert jnp.abs(data[i] - teacher.data(x[i : i + 1], at)[0]).max() > 1e-4  # which one step of the teacher would have


@pytest.mark.few_paths
def test_rounds_compose(sde, x64):
    """The students that are each the exact solution of their round, of 4, 2 and 1 steps, all end where the teacher's 8 do: the fixed point of all
    rounds is the composition. Where the flow's ends are one another's data, 1/8 of the data prediction is not."""
    teacher = gaussian().denoiser(sde)
    x_T = sde.prior_sample(jax.random.key(2), (5, 2))
    times = lambda n: sde.T * np.arange(n, -1, -1) / n
    end = carry(teacher, x_T, times(8), solvers.ddim())
    student = teacher
    for count in (4, 2, 1):

        def exact(x, t, of=student, count=count):
            return progressive.target(of, count, x, t)

        student = Denoiser(exact, sde, "data")
        np.testing.assert_allclose(carry(student, x_T, times(count), solvers.ddim()), end, atol=1e-8)
    assert jnp.abs(carry(teacher, x_T, times(1), solvers.ddim()) - end).max() > 1e-2


def test_exact_of_a_straight_flow(x64):
    """Where D does not change along the teacher's steps, as of one point, x~ is D."""
    sde = VE()
    point = Denoiser(lambda x, t: jnp.full_like(x, 0.7), sde, "data")
    x, t = begun(sde)
    np.testing.assert_allclose(progressive.target(point, COUNT, x, t), 0.7, atol=1e-12)


@pytest.mark.slow
def test_gradient(x64):
    """Of the loss in a shift of the student's data prediction: 0 at the target, 2 max(SNR, 1) times the shift beside it."""
    sde, teacher = VP(), gaussian().denoiser(VP())
    u = (jnp.arange(COUNT) + 0.5) / COUNT
    x0, noise = jax.random.normal(jax.random.key(0), (2, COUNT, 2))
    options = ConfigDict({"steps": COUNT})

    def loss(shift):
        student = Denoiser(lambda x, t: progressive.target(teacher, COUNT, x, t) + shift, sde, "data")
        return progressive.loss(student, teacher, x0, noise, u, options)

    t = jnp.arange(1, COUNT + 1) / COUNT
    snr = (sde.alpha(t) / sde.sigma(t)) ** 2
    np.testing.assert_allclose(jax.jacfwd(loss)(0.0), 0.0, atol=1e-9)
    np.testing.assert_allclose(jax.jacfwd(loss)(0.1), 0.2 * jnp.maximum(snr, 1), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("path", [Trig(), VP()], ids=lambda sde: type(sde).__name__)
def test_many_steps_in_float32(path):
    """Of 4096 steps the target has its digits: within 1e-6 of that in float64, where the difference of the paper is 2e-4 off."""
    x = np.random.default_rng(0).standard_normal((5, 2))
    times = path.T * np.array([1, 100, 2000, 4000, 4095]) / 4096

    def of(dtype):
        teacher = GaussianMixture(jnp.array([[0.3, -0.2], [-0.5, 0.4]], dtype), [0.3, 0.5]).denoiser(path)
        return np.asarray(progressive.target(teacher, 4096, jnp.asarray(x, dtype), jnp.asarray(times, dtype)))

    single = of(jnp.float32)
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, of(jnp.float64), atol=1e-6)


@pytest.mark.slow
def test_rounds_of_the_command(tmp_path):
    """Each begins from the one before, and is taught by it; guidance is of the first; samples in as many steps, as an ODE alone."""
    teacher = config_of(num_classes=10)
    teacher.objective.label_dropout = 0.5
    save_random(teacher, tmp_path / "teacher")
    config = config_of(num_classes=10)
    config.objective.loss, config.training.init, config.training.steps = "progressive", "teacher", 2
    config.objective.progressive.update(start=4, steps=1)
    config.teacher.update(workdir=str(tmp_path / "teacher"), guidance=2.0)
    for own, folder in progressive.rounds(config, tmp_path / "run"):
        train(own, folder)
    found = {count: runs.load_run(tmp_path / "run" / f"steps_{count}") for count in (4, 2, 1)}
    assert [run.config.teacher.guidance for run in found.values()] == [2.0, 1.0, 1.0]
    assert [run.config.teacher.workdir.split("/")[-1] for run in found.values()] == ["teacher", "steps_4", "steps_2"]
    before, after = (found[count].params["Dense_0"]["kernel"] for count in (4, 2))
    assert 0 < jnp.abs(after - before).max() < 0.05
    for count, run in found.items():
        values, nfe = sample.generate(run, 4, 4, 0, solver="ddim", steps=count, grid="few", tolerance=1e-3)
        assert values.shape == (4, 8, 8, 1) and nfe == count
    with pytest.raises(ValueError, match="coupled"):
        found[1].denoiser(jnp.zeros(1, int)).score(jnp.ones((1, 8, 8, 1)), 0.5)


def test_mistakes():
    config = config_of()
    config.objective.loss = "progressive"
    config.sde.name = "EDM"
    with pytest.raises(ValueError, match="on the path of EDM all noise"):
        network.from_config(config, 10)
    config.sde.name = "Linear"
    for start, steps in ((6, 1), (4, 8), (8, 3), (8, 0)):
        config.objective.progressive.update(start=start, steps=steps)
        with pytest.raises(ValueError, match=f"start = {start}, steps = {steps}"):
            network.from_config(config, 10)


@pytest.mark.slow
def test_rounds_on_a_ring():
    """few_step.md's instance: eight Gaussians on a ring of radius .702, std .06; 4900 steps of 512 in all, of which the first round, taught by the
    exact velocity, which has no weights to begin from, has 2800. One step is within .12 (root mean square) of the exact flow of the same noise; one
    of the teacher, the control, not within .4."""
    from configs import distill as configs

    config = configs.get_config("progressive_8gaussians")
    ring = GaussianMixture(0.702 * toy.ring(1.0), np.full(8, 0.06))
    config.model.width, config.training.steps = 128, 700
    net, dataset = network.from_config(config, 0), data.Dataset("ring", {}, {}, 0.0, 1.0, 0, 0)
    exact, current = ring.denoiser(net.sde), None
    x_T = net.sde.prior_sample(jax.random.key(6), (4000, 2))
    truth = sample_adaptive(exact, x_T, 1e-6, 1e-6).x
    off = lambda den: float(jnp.sqrt(jnp.mean(jnp.sum((den.data(x_T, net.sde.T) - truth) ** 2, 1))))
    teacher = exact
    for of, _ in progressive.rounds(config, ""):
        count = of.objective.progressive.steps
        if current is None:
            of.training.steps = 2800
        step, given, begun = state.make_step(of, net, dataset, axis=None), state.Frozen(teacher=teacher), state.init(of, net, (2,))

        def advance(current, i, step=step, given=given, count=count):
            x = ring.sample(jax.random.fold_in(jax.random.key(count), i), 512)
            position = (i * 512 + jnp.arange(512)).astype(jnp.uint32)
            return step(current, {"value": x, "position": position}, given)[0], None

        if current is not None:
            begun = begun.replace(params=current.ema, ema=current.ema)
        current = jax.jit(lambda s, advance=advance, n=of.training.steps: jax.lax.scan(advance, s, jnp.arange(n))[0])(begun)
        teacher = net.denoiser(current.ema)
    print(f"RMSE {off(teacher):.3f}, control {off(exact):.3f}")
    assert off(teacher) <= 0.12 and off(exact) > 0.4
