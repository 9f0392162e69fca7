"""Every config, discovered: it resolves, builds at full size, and a shrunken copy of it takes two real steps."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import save_random

from configs import consistency, distill
from experiments import cli, data, network, ranges, runs, state
from experiments.train import distils, train

FOLDER = Path(__file__).parents[2] / "configs"
VARIANTS = {
    "vdm": ("small", "digits", "cifar10", "imagenet32", "imagenet64"),
    "score_sde": ("ve", "subvp", "ve_deep", "vp_deep", "subvp_deep", "ve_discrete", "vp_discrete", "ve_digits", "vp_digits", "subvp_digits"),
    "score_matching": ("implicit",),
    "edm": ("cifar10_uncond", "cifar10_ncsnpp", "cifar10_uncond_ncsnpp", "imagenet64", "8gaussians"),
    "edm2": ("digits", "imagenet64_xl", "latents_s", "latents_xxl"),
    "flow_matching": ("ot", "lipman", "lipman_imagenet32", "lipman_imagenet64", "rectified", "reflow"),
    "score_flow": tuple(f"{data}{rest}" for data in ("cifar10", "imagenet32") for rest in ("", "_deep", "_subvp", "_subvp_deep"))[1:],
    "sit": ("l", "b", "s", "fashion"),
    "dit": ("l", "b", "s"),
    "autoencoder": ("f8",),
    "fashion": ("latents",),
    "classifier": ("fashion", "imagenet64"),
    "meanflow": ("8gaussians", "b4", "xl2", "cifar10"),
    "consistency": tuple(n for n in consistency.NAMES if n != "ict"),
    "distill": tuple(n for n in distill.NAMES if n != "perflow"),
}
NAMES = sorted(f.stem for f in FOLDER.glob("*.py") if f.stem not in ("__init__", "default"))
NAMES += [f"{name}:{variant}" for name, variants in VARIANTS.items() for variant in variants]
FAST = ("sit",)  # of several that differ in a name or a number, one
# as the README and the docstrings say
PARAMETERS = {"digits": 767_297, "toy": 133_122, "density": 234_000, "fashion": 1_726_276}
PARAMETERS |= {"vdm": 30_509_188, "vdm:small": 710_000, "vdm:digits": 771_524}
PARAMETERS |= {"score_sde": 61_804_419, "score_sde:ve": 62_758_787, "score_sde:subvp": 61_804_419}
PARAMETERS |= {"score_sde:ve_deep": 107_586_947, "score_sde:vp_deep": 106_632_579, "score_sde:subvp_deep": 106_632_579}
PARAMETERS |= {
    "score_sde:ve_discrete": 62_758_787,
    "score_sde:vp_discrete": 61_804_419,
    "score_matching": 133_122,
    "score_matching:implicit": 133_122,
}
PARAMETERS |= {f"score_sde:{name}_digits": 1_217_856 for name in ("ve", "vp", "subvp")}
PARAMETERS |= {"edm": 55_739_523, "edm:cifar10_uncond": 55_733_891, "edm:cifar10_ncsnpp": 56_403_459, "edm:cifar10_uncond_ncsnpp": 56_397_827}
PARAMETERS |= {"edm:imagenet64": 295_900_035, "flow_matching": 35_746_307, "flow_matching:ot": 35_746_307, "flow_matching:lipman": 153_094_915}
PARAMETERS |= {"sit": 674_816_272, "sit:l": 457_824_272, "sit:b": 130_303_504, "sit:s": 32_858_896, "sit:fashion": 1_275_408}
PARAMETERS |= {"flow_matching:lipman_imagenet32": 209_976_323, "flow_matching:lipman_imagenet64": 276_421_059, "flow_matching:rectified": 61_804_419}
PARAMETERS |= {f"score_flow{name}": 61_804_419 for name in ("", ":cifar10_subvp", ":imagenet32", ":imagenet32_subvp")}
PARAMETERS |= {f"score_flow:{name}_deep": 106_632_579 for name in ("cifar10", "cifar10_subvp", "imagenet32", "imagenet32_subvp")}
PARAMETERS |= {"vdm:cifar10": 30_523_014, "vdm:imagenet32": 121_893_126, "vdm:imagenet64": 237_375_750, "mmdit": 2_268_036}
PARAMETERS |= {f"dit{size}": PARAMETERS[f"sit{size}"] for size in ("", ":l", ":b", ":s")}
PARAMETERS |= {"classifier": 390_474, "classifier:fashion": 878_938, "classifier:imagenet64": 65_438_568}
PARAMETERS |= {"autoencoder": 658_952, "autoencoder:f8": 83_653_863, "fashion:latents": 2_817_220}
PARAMETERS |= {"meanflow": 801_729, "meanflow:8gaussians": 33_922, "meanflow:cifar10": 56_061_443}
PARAMETERS |= {"meanflow:b4": 131_165_248, "meanflow:xl2": 676_440_592}  # 131 and 676 M in the paper
PARAMETERS |= {"distill": 676_440_592, "distill:perflow_digits": 800_321, "distill:perflow_8gaussians": 133_378, "flow_matching:reflow": 61_804_419}
PARAMETERS |= {"distill:instaflow": 674_816_272, "distill:instaflow_digits": 767_297}
PARAMETERS |= {"consistency": 56_395_523, "consistency:ct": 56_395_523, "consistency:ect": 55_732_739}
PARAMETERS |= {f"consistency:{name}_8gaussians": 33_794 for name in ("ct", "ict", "ect", "sct")}
PARAMETERS |= {
    "consistency:ict_imagenet64": 295_900_035,
    "consistency:ect_imagenet64": 280_209_253,
    "distill:cd_imagenet64": 295_900_035,
    "distill:cd": 56_395_523,
    "distill:ctm": 56_067_075,
}
PARAMETERS |= {"distill:lcm_lora": 48_089_088, "distill:lcm_lora_digits": 125_008}  # of the adapter
PARAMETERS |= {"distill:lcm": 674_881_808, "distill:lcm_digits": 801_473, "distill:cd_8gaussians": 33_794}
PARAMETERS |= {"distill:tcd": 676_440_592, "distill:pcm": 676_440_592, "distill:cd_digits": 767_297}
PARAMETERS |= {f"distill:{name}_digits": 800_321 for name in ("ctm", "tcd", "pcm")}
PARAMETERS |= {f"distill:{name}_8gaussians": 33_922 for name in ("ctm", "tcd", "pcm")}
PARAMETERS |= {"distill:ctm_imagenet64": 296_638_851}
PARAMETERS |= {"consistency:sct": 60_066_627, "consistency:sct_imagenet64": 293_922_689}
PARAMETERS |= {"consistency:trig": 60_067_779, "consistency:trig_imagenet64": 293_922_689, "progressive": 60_004_099}
PARAMETERS |= {"distill:scd": 60_066_627, "distill:scd_imagenet64": 293_922_689, "distill:scd_8gaussians": 33_794}
PARAMETERS |= {"edm2": 280_209_317, "edm2:digits": 406_227, "edm2:imagenet64_xl": 1_119_276_773}
PARAMETERS |= {"edm2:latents_s": 280_212_773, "edm2:latents_xxl": 1_523_000_000}
PARAMETERS |= {f"consistency:{name}_digits": 767_297 for name in ("ct", "ict", "ect")}
PARAMETERS |= {"edm:8gaussians": 33_794, "consistency:trig_8gaussians": 33_794}
PARAMETERS |= {"consistency:trig_digits": 755_009, "consistency:sct_digits": 755_073, "distill:scd_digits": 755_073}
PARAMETERS |= {"distill:add": 674_816_272, "distill:add_digits": 767_297, "distill:add_8gaussians": 133_122}
PARAMETERS |= {"distill:progressive": 60_004_099, "distill:progressive_8gaussians": 133_122, "distill:progressive_digits": 767_297}
SHAPES = {"fashion_mnist": ((28, 28, 1), 10), "cifar10": ((32, 32, 3), 10), "latents": ((32, 32, 4), 1000), "fashion:latents": ((7, 7, 4), 10)}
SHAPES |= {
    "edm2:latents_s": ((64, 64, 4), 1000),
    "edm2:latents_xxl": ((64, 64, 4), 1000),
    "flow_matching:reflow": ((32, 32, 3), 10),
    "distill:instaflow": ((32, 32, 4), 1000),
    "distill:instaflow_digits": ((8, 8, 1), 10),
}  # of pairs


@pytest.fixture(autouse=True)
def forget():
    """The programs of the tests before: a process that keeps all of them dies after some ninety tests."""
    jax.clear_caches()


def shape_of(name, size=None):
    """Of an example of a config whose data are large, or not at hand, and the number of classes; None of others. size: of images of a folder."""
    config = get_config(name).data
    size = size or config.size
    return ((size, size, 3), 1000) if config.name == "folder" else SHAPES.get(name, SHAPES.get(config.name))


def get_config(name):
    name, *argument = name.split(":")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "python -m experiments.train" in module.__doc__, "the docstring gives the command"
    return module.get_config(*argument)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_in_its_range(name):
    """Every number and every word of every config has a range, and is in it."""
    config = get_config(name)
    assert not cli.flat(config).keys() - ranges.RANGES.keys(), "an option without a range: put it into `ranges.RANGES`"
    ranges.check(config)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_config(name, tmp_path, monkeypatch):
    """Its size as published; a shrunken copy takes two real steps, is saved, and comes back as a Denoiser that gives numbers."""
    config = get_config(name)
    config.data.size = min(config.data.size, 64)
    use_small_data(monkeypatch, config.data.name, shape_of(name, config.data.size))
    dataset = data.load(config.data)
    net = network.from_config(config, dataset.num_classes)
    full = jax.eval_shape(lambda: state.init(config, net, dataset.shape))
    size = sum(a.size for name, of in full.params.items() if name != "discriminator" for a in jax.tree.leaves(of))
    assert size == pytest.approx(PARAMETERS[name], rel=1e-3 if name.partition(":")[0] in VARIANTS else 0.02)
    shrunken = {"channels": 8, "width": 16, "depth": 1, "num_heads": 2, "blocks": 1, "multipliers": (1, 2), "attention": ()}
    for key, value in shrunken.items():
        if config.model[key] is not None:
            config.model[key] = value
    config.training.update({"batch": 8, "steps": 2})
    if distils(config.objective):
        save_random(teacher_of(config), tmp_path / "of")
        config.teacher.workdir = str(tmp_path / "of")
        if config.lora.rank:
            config.lora.base = str(tmp_path / "of")
    trained = train(config, tmp_path / "run")
    assert int(trained.step) == 2 and (tmp_path / "run" / "checkpoints" / "2").is_dir()
    run = runs.load_run(tmp_path / "run", weights="raw")
    jax.tree.map(np.testing.assert_array_equal, run.adapter or run.params, trained.params)
    x = run.dataset.to_x(jax.random.split(jax.random.key(0), 2), run.dataset.values["test"][:2])
    if config.objective.loss == "autoencoder":
        assert np.all(np.isfinite(run.network.decode(run.params, run.network.encode(run.params, x)[..., :4])))
        return
    if config.objective.loss == "classifier":
        assert np.all(run.network(run.params, x, jnp.full(2, 0.5), jnp.arange(2)) < 0)
        return
    label = jnp.arange(2) if run.conditional else None
    if run.network.final:
        assert np.all(np.isfinite(run.flow_map(label, max(1.0, config.objective.consistency.omega[0]))(x, run.network.sde.T, run.network.sde.eps)))
        return
    assert np.all(np.isfinite(run.denoiser(label).data(x, 0.5)))


def teacher_of(config):
    """A config of a model of one time that `config` distils."""
    teacher = config.copy_and_resolve_references()
    teacher.objective.loss, teacher.objective.label_dropout, teacher.training.init = "regression", 0.1, ""
    teacher.model.second_time = teacher.model.told_omega = None  # the default, of networks that have neither too
    teacher.lora.rank = 0
    teacher.objective.adversarial.weight = 0.0
    return teacher


LOWER = """
import importlib, sys
import jax, jax.numpy as jnp
from experiments import data, network, state
from experiments.train import distils
from test_configs import teacher_of
name, *variant = sys.argv[1].split(":")
config = importlib.import_module(f"configs.{name}").get_config(*variant)
shape, classes = eval(sys.argv[2])
assert jax.device_count() == 8
net = network.from_config(config, classes)
dataset = data.Dataset("stand-in", {"train": jnp.zeros((1, *shape))}, {}, 1.0, 1.0, 256, classes)
full = jax.eval_shape(lambda: state.init(config, net, shape))
step = jax.pmap(state.make_step(config, net, dataset), axis_name=state.AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=(0,))
each = config.training.batch // 8
of = lambda s, dtype: jax.ShapeDtypeStruct((8, each, *s), dtype)
batch = {"value": of(shape, jnp.uint8), "label": of((), jnp.int32), "position": of((), jnp.uint32)}


def given():
    base = net.init(jax.random.key(0), shape) if config.lora.rank else None
    if not distils(config.objective):
        return state.Frozen(base)
    taught = network.from_config(teacher_of(config), classes)
    params = taught.init(jax.random.key(0), shape)
    return state.Frozen(base, taught.denoiser(params), jax.tree_util.Partial(taught.features, params) if net.discriminator else None)


text = step.lower(full, batch, jax.eval_shape(given)).as_text()
assert "all_reduce" in text and '"devices"=8' in text, text[:500]
"""


LARGE = [n for n in NAMES if get_config(n).data.name in ("cifar10", "folder", "latents")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in LARGE if n != "fashion:latents"])
def test_step_lowers_on_eight_devices(name):
    """The full-scale training step, at its own batch, over eight simulated devices with one all-reduce."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(map(str, (FOLDER.parent, FOLDER.parent / "tests", Path(__file__).parent))),
    }
    shape = shape_of(name)
    subprocess.run([sys.executable, "-c", LOWER, name, repr(shape)], env=environment, check=True, timeout=600)


def use_small_data(monkeypatch, name, kind):
    """16 examples of the shape and classes of data that are large, or not at hand."""
    if kind is None:
        return
    shape, classes = kind
    rng, labels = np.random.default_rng(0), np.zeros(16, np.int32)
    values = rng.integers(0, 256, (16, *shape)).astype(np.uint8)
    small = data.Dataset(name, {"train": values, "test": values}, {"train": labels, "test": labels}, 128.0, 128.0, 256, classes)
    if name == "pairs":
        x = rng.standard_normal((16, *shape)).astype(np.float32)
        small = data.Pairs(name, {"train": x, "test": x}, small.labels, 128.0, 128.0, 0, classes, sources={"train": x, "test": x}, of=small)
    if name == "latents":
        moments = np.abs(rng.normal(size=(16, *shape[:-1], 2 * shape[-1]))).astype(np.float32)
        small = data.Latents(name, {"train": moments, "test": moments}, small.labels, 0.0, 1.0, 0, classes, about={"sha256": "", "scale": 1.0})
        monkeypatch.setattr(runs, "decoder", lambda latents: None)
    monkeypatch.setitem(data.LOADERS, name, lambda path, size: small)
