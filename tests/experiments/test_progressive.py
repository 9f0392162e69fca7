"""Progressive distillation against closed forms, and as the command runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config_of, save_random

from configs import default
from experiments import data, distill, network, objectives, progressive, runs, sample, state, toy
from samplers import sample as carry
from samplers import sample_adaptive, solvers
from sde_lib import VE, Denoiser, GaussianMixture
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
    data, noise = progressive.pair(teacher, COUNT, x, t)
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
            return progressive.pair(of, count, x, t)[0]

        student = Denoiser(exact, sde, "data")
        np.testing.assert_allclose(carry(student, x_T, times(count), solvers.ddim()), end, atol=1e-8)
    assert jnp.abs(carry(teacher, x_T, times(1), solvers.ddim()) - end).max() > 1e-2


def test_exact_of_a_straight_flow(x64):
    """Where D does not change along the teacher's steps, as of one point, x~ is D."""
    sde = VE()
    point = Denoiser(lambda x, t: jnp.full_like(x, 0.7), sde, "data")
    x, t = begun(sde)
    np.testing.assert_allclose(progressive.pair(point, COUNT, x, t)[0], 0.7, atol=1e-12)


@pytest.mark.parametrize("kind, name", [("v", "truncated_snr"), ("v", "v"), ("data", "truncated_snr"), ("noise", "own")])
def test_gradient(x64, kind, name):
    """Of the loss in a shift of the data prediction, in each kind: 0 at the exact student, 2 w(t) times the shift beside it, w being max(SNR, 1), or
    SNR + 1."""
    from sde_lib import VP, plane_point

    sde = VP()
    x, t = begun(sde)
    data, noise = progressive.pair(gaussian().denoiser(sde), COUNT, x, t)
    to_kind = lambda data: sum(
        expand(c, x) * a for c, a in zip(plane_point(sde, kind, t), (data, (x - expand(sde.alpha(t), x) * data) / expand(sde.sigma(t), x)))
    )

    def loss(shift):
        den = Denoiser(lambda x, t: to_kind(data + shift), sde, kind)
        c, d = plane_point(sde, kind, t)
        error = den.raw(x, t) - expand(c, x) * data - expand(d, x) * noise
        return objectives.weighting(name, den, x, t) * jnp.mean(error**2, 1)

    snr = (sde.alpha(t) / sde.sigma(t)) ** 2
    expected = {"truncated_snr": jnp.maximum(snr, 1), "v": snr + 1, "own": snr}[name]
    np.testing.assert_allclose(jax.jacfwd(loss)(0.0), 0.0, atol=1e-9)
    np.testing.assert_allclose(jax.jacfwd(loss)(0.1), 0.2 * expected, rtol=1e-8)


def test_rounds():
    objective = default.get_config().objective
    objective.time.update(name="grid", count=1)
    for first, last, found in ((8, 1, [8, 4, 2, 1]), (8, 4, [8, 4]), (12, 3, [12, 6, 3]), (1, 1, [1])):
        objective.progressive.first, objective.time.count = first, last
        assert progressive.rounds(objective) == found
    for first, last in ((8, 3), (4, 8), (6, 1), (8, 0), (0, 0)):
        objective.progressive.first, objective.time.count = first, last
        with pytest.raises(ValueError, match=f"progressive.first = {first}, time.count = {last}"):
            progressive.rounds(objective)
    objective.time.name = "uniform"
    with pytest.raises(ValueError, match="expected grid"):
        progressive.rounds(objective)


def config_of_rounds(**model):
    config = config_of(**model)
    config.objective.update(loss="progressive", weighting="truncated_snr")
    config.objective.time.update(name="grid", count=1)
    config.objective.progressive.update(first=2, longer=2)
    config.training.init = "teacher"
    return config


def test_rounds_of_the_command(tmp_path):
    """Each begins from the one before, and is taught by it; guidance is of the first; a repeated command trains nothing; samples in as many steps."""
    teacher = config_of(num_classes=10)
    teacher.objective.label_dropout = 0.5
    save_random(teacher, tmp_path / "teacher")
    config = config_of_rounds(num_classes=10)
    config.teacher.guidance = 2.0
    config.objective.progressive.first = 4
    distill.distill(config, tmp_path / "teacher", tmp_path / "run")
    found = {count: runs.load_run(tmp_path / "run" / f"steps_{count}") for count in (4, 2, 1)}
    assert [run.step for run in found.values()] == [4, 8, 8]
    assert [run.config.teacher.guidance for run in found.values()] == [2.0, 1.0, 1.0]
    assert [run.config.teacher.workdir.split("/")[-1] for run in found.values()] == ["teacher", "steps_4", "steps_2"]
    before, after = (found[count].params["Dense_0"]["kernel"] for count in (4, 2))
    assert 0 < jnp.abs(after - before).max() < 0.05
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/checkpoints/*/*")}
    distill.distill(config, tmp_path / "teacher", tmp_path / "run")
    assert marks == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/checkpoints/*/*")}
    for count, run in found.items():
        values, nfe = sample.generate(run, 4, 4, 0, solver="ddim", steps=count, grid="few", tolerance=1e-3)
        assert values.shape == (4, 8, 8, 1) and nfe == count


@pytest.mark.slow
def test_rounds_on_a_ring():
    """few_step.md's instance: eight Gaussians on a ring of radius .702, std .06; 4900 steps of 512 in all, the first round taught by the
    exact velocity. One step is within .12 (root mean square) of the exact flow of the same noise; one of the teacher, the control, not within .4."""
    from configs import progressive as configs

    config = configs.get_config("8gaussians")
    ring = GaussianMixture(0.702 * toy.ring(1.0), np.full(8, 0.06))
    config.model.width, config.training.steps = 128, 350
    net, dataset = network.from_config(config, 0), data.Dataset("ring", {}, {}, 0.0, 1.0, 0, 0)
    exact, current = ring.denoiser(net.sde), None
    x_T = net.sde.prior_sample(jax.random.key(6), (4000, 2))
    truth = sample_adaptive(exact, x_T, 1e-6, 1e-6).x
    off = lambda den: float(jnp.sqrt(jnp.mean(jnp.sum((den.data(x_T, net.sde.T) - truth) ** 2, 1))))
    teacher = exact
    for count in progressive.rounds(config.objective):
        of = progressive.round_of(config, count, "")
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
