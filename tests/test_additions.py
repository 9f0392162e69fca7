"""A new path, solver, loss, network and data set is a change of one file each and of no test: the suite, as it is, finds them, and what is wrong."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("sde_lib", "models", "samplers", "experiments", "configs", "tests")
PATH = '''

@path
class Parabola(SDE):
    """alpha = 1 - t^2, sigma = t."""

    def alpha(self, t: Time):
        t = as_time(t)
        return (1.0 - t) * (1.0 + t)

    def sigma(self, t: Time):
        return as_time(t)

    def time(self, log_snr: Time):
        ratio = namespace(log_snr).exp(as_time(log_snr))
        return 2.0 / (ratio + namespace(log_snr).hypot(ratio, 2.0))
'''
SOLVER = '''"""DDIM in two halves."""

import dataclasses

import numpy as np

from samplers.solvers.exponential import ddim
from samplers.table import Solver


def halves(scale: float = 1.0) -> Solver:
    """DDIM through the middle of each step."""

    def solver(sde, times):
        table = ddim()(sde, np.sort(np.append(times, 0.5 * (times[:-1] + times[1:])))[::-1])
        return dataclasses.replace(table, p=scale * table.p)

    return solver
'''
LOSS = '''

def quartic(den: Denoiser, x0: Float[Array, "b ..."], x_t, noise, t: Float[Array, " b"], keys, objective: ConfigDict) -> Float[Array, " b"]:
    """The second power of the error of the noise, and some of the fourth, [B]."""
    error = den.noise(x_t, t) - noise
    return jnp.mean(error**2 + 0.01 * error**4, range(1, x0.ndim))


LOSSES["quartic"] = quartic
'''
NETWORK = '''"""A network of one layer."""

import flax.linen as nn
import jax.numpy as jnp


class Affine(nn.Module):
    """A sum of layers of x, t and the label."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, x, t, label=None, example=None):
        label = jnp.full(t.shape, self.num_classes) if label is None else label
        h = nn.Dense(64)(jnp.concatenate([x.reshape(len(x), -1), t[:, None]], -1)) + nn.Embed(self.num_classes + 1, 64)(label)
        return nn.Dense(x[0].size, kernel_init=nn.initializers.zeros)(nn.silu(h)).reshape(x.shape)
'''
DATA = '''

def cross(rng: np.random.Generator, n: int, variant: str) -> Float[np.ndarray, "n 2"]:
    """Two normal distributions, long and narrow."""
    wide, narrow = 2.0 * rng.standard_normal(n), 0.1 * rng.standard_normal(n)
    return np.where(rng.integers(2, size=(n, 1)) == 1, np.stack([wide, narrow], 1), np.stack([narrow, wide], 1))


TOYS["cross"] = (cross, ("plain",))
'''
CONFIG = """from configs import toy


def get_config():
    config = toy.get_config("moons")
    config.model = {"name": "Affine"}
    return config
"""
# the file, what is added to it, its name in tests, those that should find it and how many at least, and what is wrong in the control
ADDED = {
    "path": ("sde_lib/paths.py", PATH, "Parabola", ("sde_lib", "test_contract.py"), 30, ("return 2.0 / (", "return 2.1 / (")),
    "solver": (
        "samplers/solvers/halves.py",
        SOLVER,
        "halves or marginals_of_every_solver",
        ("samplers/test_table.py",),
        10,
        ("scale: float = 1.0", "scale: float = 1.1"),
    ),
    "loss": ("experiments/objectives.py", LOSS, "quartic", ("experiments/test_objectives.py",), 1, ("- noise", "- noise - 0.1")),
    "network": (
        "models/affine.py",
        NETWORK,
        "Affine",
        ("models/test_models.py", "experiments/test_adversarial.py"),
        1,
        ("nn.silu(h)", "nn.silu(h - h.mean(0))"),
    ),
    "data": (
        "experiments/toy.py",
        DATA,
        "cross",
        ("experiments/test_data.py",),
        1,
        ("[wide, narrow], 1), ", "[wide, narrow], 1)[:-1], "),
    ),
}


def copied(folder: Path, *names: str, of_control: bool = False) -> Path:
    """A copy of the project with these additions; `of_control`: which are wrong."""
    for part in FOLDERS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (".pytest.ini", "README.md"):
        shutil.copy(ROOT / file, folder)
    for name in names:
        file, text, *_, (right, wrong) = ADDED[name]
        with open(folder / file, "a") as f:
            f.write(text.replace(right, wrong) if of_control else text)
    return folder


def ran(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A Python module in that copy."""
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True)


def outcome(folder: Path, name: str, of_control: bool) -> dict[str, int]:
    """How many tests passed and failed in a copy of the project with this addition: in the files that should find it all, elsewhere the fast ones."""
    copy, (_, _, called, files, *_) = copied(folder, name, of_control=of_control), ADDED[name]
    found = {"passed": 0, "failed": 0, "error": 0}
    for chosen in (("-m", "slow", "-k", called, *(f"tests/{file}" for file in files)), ("-m", "not slow", "-k", f"{called} or readme_has", "tests")):
        said = ran(copy, "pytest", *chosen).stdout
        print(said[-3000:])
        for count, word in re.findall(r"(\d+) (passed|failed|error)", said):
            found[word] += int(count)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDED)
def test_an_addition(tmp_path, name):
    found = outcome(tmp_path, name, False)
    assert found["passed"] >= ADDED[name][4] and found["failed"] == found["error"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDED)
def test_a_wrong_addition_is_found(tmp_path, name):
    assert outcome(tmp_path, name, True)["failed"] > 0


@pytest.mark.slow
def test_commands_know_them(tmp_path):
    """Trained on and sampled by, all five, by their names."""
    copy, short = copied(tmp_path, *ADDED), ("--config.training.steps=2", "--config.training.batch=16")
    (copy / "configs" / "affine.py").write_text(CONFIG)
    names = ("--config.sde.name=Parabola", "--config.objective.loss=quartic", "--config.data.name=cross")
    done = [
        ran(copy, "experiments.train", "--config=configs/affine.py", "--workdir=run", *names, *short),
        ran(copy, "experiments.sample", "--workdir=run", "--solver=halves", "--steps=3", "--num=8"),
    ]
    assert not any(command.returncode for command in done), [command.stderr for command in done]
    assert (copy / "run" / "samples" / "halves_3.npz").exists()
