"""Latent consistency models: told guidance, boundary, adapters."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config_of, save_random

from configs import default
from experiments import adapters, data, export, network, objectives, runs, sample, state, toy
from experiments.train import train
from samplers import jumps, sample_adaptive, solvers
from samplers import sample as carry
from samplers.guidance import classifier_free
from sde_lib import DDPM, SDE, VP, Denoiser, FlowMap, GaussianMixture
from sde_lib.numerics import expand


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


STD, MEANS = 0.5, np.array([[0.6, -0.2], [-0.7, 0.4], [0.1, 0.1]])  # of two classes, and none


class Exact(nn.Module):
    """The consistency function of Gaussians of which guidance is another: of mean m + (omega - 1)(m - m_none), as all have one deviation."""

    sde: SDE
    num_classes: int = 2
    told_omega: bool = True

    @nn.compact
    def __call__(self, x, t, label=None, example=None, omega=None):
        bend, share = (self.param(name, nn.initializers.constant(value), ()) for name, value in (("bend", 0.0), ("share", 1.0)))
        t, s = t * self.sde.T, jnp.asarray(self.sde.sampling_eps)
        means = jnp.asarray(MEANS)[label] + expand(share * omega + (1 - share) * 2 - 1, x) * (jnp.asarray(MEANS)[label] - MEANS[2])
        root = lambda t: jnp.sqrt((self.sde.alpha(t) * STD) ** 2 + self.sde.sigma(t) ** 2)
        x = expand(root(t), x) * x  # it was scaled
        to = self.sde.alpha(s) * means + expand(root(s) / root(t), x) * (x - expand(self.sde.alpha(t), x) * means)
        ratio = expand(self.sde.sigma(s) / self.sde.sigma(t), x)
        over = self.sde.alpha(s) - expand(self.sde.alpha(t), x) * ratio
        return (1 + bend * expand(t, x)) * (to - ratio * x) / jnp.where(over == 0, 1.0, over)


@pytest.mark.few_paths
def test_the_guided_map_is_the_fixed_point(sde, x64):
    """Of Gaussians of one deviation the guided flow is that of another Gaussian: the loss, which draws omega and tells the student, and its slopes
    vanish at its map, of 8000 steps; not at a bent one, nor at one that is deaf to omega."""
    config = lcm_config(told_omega=True)
    config.objective.update(kind="data", sigma_data=STD)
    config.objective.consistency.update(omega=(1.0, 4.0), count=8001, metric="l2")
    net = network.Network(Exact(sde), sde, "data", STD, "time", final=True)
    means = [GaussianMixture([m], [STD]).denoiser(sde) for m in MEANS]
    fn = lambda x, t, label: jnp.stack([d.predict("velocity", x, t) for d in means])[label, jnp.arange(len(x))]
    given = objectives.Given(Denoiser(fn, sde, "velocity"))
    n, label = 256, jnp.arange(256) % 2
    values = MEANS[label] + STD * np.random.default_rng(0).standard_normal((n, 2))
    batch = {"value": values, "label": label, "position": jnp.arange(n, dtype=jnp.uint32)}
    dataset = data.Dataset("gaussians", {}, {}, 0.0, 1.0, 0, 2)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return objectives.loss(net, params, dataset, config.objective, jax.random.PRNGKey(0), batch, given).mean()

    at = lambda bend, share: loss({"bend": jnp.asarray(bend), "share": jnp.asarray(share)})
    (exact, slopes), (bent, bent_slopes), (deaf, deaf_slopes) = at(0.0, 1.0), at(0.1, 1.0), at(0.0, 0.0)
    # what is left is the square of one step's error, of fourth order in its length, that of the others of second
    assert exact < 1e-9 and max(map(abs, slopes.values())) < 1e-6  # at most 3e-10, 3e-7 (EDM, whose step is the longest); else below 2e-11, 8e-8
    assert bent > 100 * exact and deaf > 100 * exact
    assert abs(bent_slopes["bend"]) > 10 * abs(slopes["bend"]) and abs(deaf_slopes["share"]) > 10 * abs(slopes["share"])


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


@pytest.mark.slow
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


def test_mistakes(teacher, tmp_path):
    for told, omega, classes, said in (
        (False, (1.0, 4.0), 10, "told_omega = False"),
        (True, (0.0, 0.0), 10, "omega = "),
        (True, (1.0, 4.0), 0, "num_classes = 0"),
    ):
        config = lcm_config(told_omega=told)
        config.model.num_classes = classes
        config.objective.consistency.omega = omega
        with pytest.raises(ValueError, match=said):
            network.from_config(config, 10)
    config = lcm_config(told_omega=True, second_time=True)
    config.objective.consistency.omega = (1.0, 4.0)
    with pytest.raises(ValueError, match="told its guidance"):
        network.from_config(config, 10).denoiser({})
    config.teacher.update(workdir=str(teacher), guidance=2.0)
    with pytest.raises(ValueError, match="teacher.guidance = 2.0"):
        train(config, tmp_path / "run")
    never = config_of(num_classes=10)  # without a label
    never.objective.kind = "v"
    save_random(never, tmp_path / "teacher")
    config.teacher.update(workdir=str(tmp_path / "teacher"), guidance=1.0)
    with pytest.raises(ValueError, match="label_dropout = 0"):
        train(config, tmp_path / "other")


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_jump_on_a_ring():
    """few_step.md's instance, eight Gaussians on a ring of radius .702, std .06, each a class, with the exact teacher, guided by 1 to 5, on VP and 50
    equal steps in time: after 3000 steps of 512 one jump is within .12 (root mean square) of the guided flow of the same noise, at omega 1, 2 and 5.
    Control: one DDIM step of the guided teacher is not within .4 at 2 and 5."""
    config = default.get_config()
    config.model.update(name="MLP", width=128, depth=3, num_classes=8, told_omega=True)
    config.sde.name = "VP"
    config.objective.update(loss="consistency", kind="data")
    config.objective.consistency.update(step="ddim", grid="uniform", count=51, target=0.95, omega=(1.0, 5.0))
    config.optim.update(schedule="cosine")
    config.training.update(batch=512, steps=3000)
    sde, centres = VP(), jnp.asarray(0.702 * toy.ring(1.0), jnp.float32)
    one = GaussianMixture(np.zeros((1, 2)), [0.06]).denoiser(sde)
    every = GaussianMixture(centres, np.full(8, 0.06)).denoiser(sde)

    def fn(x, t, label):
        mean = centres[jnp.minimum(label, 7)]
        moved = one.data(x - expand(sde.alpha(t), x) * mean, t) + mean
        return jnp.where((label == 8)[:, None], every.data(x, t), moved)

    teacher = Denoiser(fn, sde, "data")
    net = network.from_config(config, 8)
    step = state.make_step(config, net, data.Dataset("ring", {}, {}, 0.0, 1.0, 0, 8), axis=None)

    def advance(current, i):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(5), i))
        label = jax.random.randint(keys[0], (512,), 0, 8)
        x = centres[label] + 0.06 * jax.random.normal(keys[1], (512, 2))
        position = (i * 512 + jnp.arange(512)).astype(jnp.uint32)
        return step(current, {"value": x, "label": label, "position": position}, state.Frozen(teacher=teacher))[0], None

    trained = jax.jit(lambda s: jax.lax.scan(advance, s, jnp.arange(3000))[0])(state.init(config, net, (2,)))
    x_T, label = sde.prior_sample(jax.random.key(6), (2000, 2)), jnp.arange(2000) % 8
    off = lambda x, exact: float(jnp.sqrt(jnp.mean(jnp.sum((x - exact) ** 2, 1))))
    for omega in (1.0, 2.0, 5.0):
        guided = classifier_free(replace(teacher, cond=label), 8, omega)
        exact = sample_adaptive(guided, x_T, 1e-5, 1e-5).x
        found, single = (off(x, exact) for x in (jumps(net.flow_map(trained.ema, label, omega), x_T, [1.0, 0.0]), guided.data(x_T, 1.0)))
        print(f"omega {omega}: RMSE {found:.3f}, of one DDIM step {single:.3f}")
        assert found <= 0.12 and (omega == 1 or single > 0.4)
