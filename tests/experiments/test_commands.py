"""The commands as a user types them: the README's, and mistakes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import small_config

from experiments import fit, latent

ROOT = Path(__file__).parents[2]


def readme_commands():
    """Every `python -m experiments...` line of the README's bash blocks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    lines = [line.split("#")[0].strip() for language, block in blocks if language == "bash" for line in block.splitlines()]
    return [line for line in lines if line.startswith("python -m experiments.")]


# what makes a command short; everything else is as printed
SHORT = {
    "experiments.train": ["--config.training.steps=2", "--config.training.batch=8"],
    "experiments.distill": ["--config.training.steps=2", "--config.training.batch=8"],
    "experiments.reflow": ["--num=16", "--held_out=8", "--tolerance=0.1", "--batch=8"],
    "experiments.sample": ["--num=3", "--steps=3", "--tolerance=0.1", "--batch=8"],
    "experiments.inverse": ["--num=2", "--samples=2", "--steps=3", "--batch=8"],
    "experiments.autoencode": ["--limit=16", "--batch=8"],
    "experiments.data": [],
    "experiments.doctor": [],
    "experiments.profile": ["--steps=2", "--config.training.batch=8"],
    "experiments.export": [],
    "experiments.fit": ["--steps=3", "--examples=8", "--knots=3", "--iterations=1", "--train_batch=4"],
    "experiments.dequantization": ["--steps=2", "--train_batch=8"],
    "experiments.latent": ["--num=3", "--tolerance=0.1", "--batch=8", "--pairs=1", "--frames=3"],
    "experiments.likelihood": ["--num=3", "--rtol=0.1", "--atol=0.1", "--batch=8"],
    "experiments.evaluate": ["--groups=2", "--limit=20", "--steps=3", "--batch=8"],
    "experiments.report": ["--num=20", "--groups=2", "--nfe=3,4", "--batch=64"],
    "experiments.tables": ["--quick"],
    "experiments.benchmarks.sampling": ["--quick"],
    "experiments.benchmarks.training": ["--quick"],
    "experiments.benchmarks.likelihood": ["--quick"],
    "experiments.benchmarks.scaling": ["--quick"],
}


def measures(command):
    """Whether a command is left to the slow run: what has fast tests of its own, tables and benchmarks, some solvers, other ways to train."""
    commands = ("experiments.tables", "benchmarks", "experiments.profile", "dequantization", "_lora", "_twin", "latent", "_classifier")
    commands += ("experiments.export", "experiments.report")
    solvers = ("=amed", "=gits", "=unipc", "=churn", "=restart", "=reverse_diffusion", "=euler_maruyama")
    ways = ("runs/vdm", "runs/scoreflow", "runs/sliced", "runs/meanflow", "runs/autoencoder", "runs/joined", "8gaussians", "rectified")
    ways += ("runs/bridge", "runs/ict", "runs/tcd")
    slow = (*commands, *solvers, *ways)
    return any(part in command for part in slow)


def test_readme_commands_work_as_printed(start, tmp_path):
    """Each command on a run that the README prints, with the run in a temporary folder and shortened, exits with 0 and writes what it says."""
    commands = readme_commands()
    assert {shlex.split(c)[2] for c in commands} == set(SHORT)
    execute(start, [c for c in commands if not measures(c)], tmp_path)


@pytest.mark.slow
def test_readme_measurements_work_as_printed(start, tmp_path):
    """The README's tables and benchmarks, likewise, after the training that some of them need."""
    commands = readme_commands()
    trained = next(c for c in commands if "experiments.train" in c and "runs/digits" in c)
    execute(start, [trained, *filter(measures, commands)], tmp_path)


def shortening(words):
    """What makes this command short, without flags that its solver or job would refuse as it does not look at them."""
    chosen = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    others = {
        "experiments.sample": {"steps" if chosen.get("solver") == "adaptive" else "tolerance"},
        "experiments.fit": {"steps", "examples", "knots", "iterations", "train_batch"} - {*fit.OPTIONS.get(chosen.get("solver"), ())},
        "experiments.latent": {"num", "pairs", "frames"} - {*latent.OPTIONS.get(chosen.get("job"), ())},
    }.get(words[2], set())
    return [word for word in SHORT[words[2]] if word[2:].split("=")[0] not in others]


def execute(start, commands, tmp_path):
    for command in commands:
        words = shlex.split(command.replace("runs/", f"{tmp_path}/"))
        if words[2] == "experiments.tables" or "benchmarks" in words[2]:
            words.append(f"--out={tmp_path / words[2]}")
        if words[2] == "experiments.data":
            words.append(f"--out={tmp_path / 'data.png'}")
        narrow = ["--config.model.channels=8", "--config.model.attention=()"] if "configs/digits.py" in command or ":digits" in command else []
        done = start(*words[2:], *shortening(words), *narrow)
        assert done.wait() == 0, (command, done.said[-3000:])
        for written in re.findall(r"wrote (\S+?)[,\s]", done.said + " "):
            assert Path(written).exists(), (command, written)


@pytest.mark.parametrize(
    "command, words",
    [
        ("experiments.train --config=configs/digits.py --workdir={0} --config.training.stesp=3", "did you mean --config.training.steps?"),
        ("experiments.train --config=configs/digits.py --workdir={0} --config.training.steps=many", "invalid literal"),
        ("experiments.train --config=configs/nothing.py --workdir={0}", "configs/nothing.py"),
        ("experiments.train --config=configs/digits.py", "workdir"),
        ("experiments.train --config=configs/toy.py:spiral --workdir={0}", "unknown data set 'spiral': expected one of"),
        ("experiments.train --config=configs/fashion.py --workdir={0} --config.data.path=/nowhere", "/nowhere: no such folder"),
        ("experiments.sample --workdir={0}/nothing", "expected a --workdir made by"),
        ("experiments.sample --workdir={0} --solver=dpm", "dpm_solver_pp"),
        ("experiments.sample --workdir={0} --corrector=langevn", "annealed_langevin"),
        ("experiments.fit --workdir={0}/nothing --solver=gits", "expected a --workdir made by"),
        ("experiments.reflow --workdir={0}/nothing --out={0}/pairs", "expected a --workdir made by"),
        ("experiments.inverse --workdir={0}/nothing", "expected a --workdir made by"),
        ("experiments.inverse --workdir={0}/nothing --problem=denoising", "super_resolution"),
        ("experiments.likelihood --workdir={0}/nothing", "expected a --workdir made by"),
        ("experiments.latent --workdir={0}/nothing", "expected a --workdir made by"),
        ("experiments.evaluate --workdir={0}/nothing extra", "unexpected argument 'extra'"),
        ("experiments.evaluate --samples={0}/none.npz --config=configs/digits.py", "none.npz cannot be read"),
        ("experiments.inception --weights={0}/none.pth", "none.pth: no such file"),
        ("experiments.statistics --name=digits", "--inception_weights is missing"),
        ("experiments.train --config=configs/vdm.py:tiny --workdir={0}", "configs/vdm.py:tiny: expected paper, cifar10"),
        ("experiments.tables --table=nothing", "expected one of"),
        ("experiments.tables --table=zoo --workdir={0}", "--table=zoo trains its own models, or needs none; leave it out"),
        ("experiments.fit --workdir={0} --solver=dpm_solver_v3 --steps=5", "--solver=dpm_solver_v3 has no such option; it has examples, knots"),
        ("experiments.latent --workdir={0} --job=decode --num=5", "--num=5: --job=decode has no such option; it has latents"),
        ("experiments.profile --config=configs/digits.py --steps=0", "--steps=0: expected at least 1"),
        ("experiments.data --path=/nowhere", "config.data.path = '/nowhere': expected a folder of images"),
        ("experiments.from_diffusers --file={0}/nothing --out={0}/out", "nothing: no such file"),
        ("experiments.train --config=configs/edm.py:cifar --workdir={0}", "configs/edm.py:cifar: expected cifar10, cifar10_uncond"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_clear_line(start, tmp_path, command, words):
    done = start(*shlex.split(command.format(tmp_path)))
    assert done.wait() == 1 and words in done.said, done.said
    assert "Traceback" not in done.said
    lines = [line for line in done.said.splitlines() if line.strip() and not line.startswith("Pass --help")]
    assert len(lines) <= 2, done.said  # absl prints the flag's error under a heading


def test_python_itself_runs_a_command(tmp_path):
    """Without the server that the other tests are forked of: one line, and 1."""
    command = [sys.executable, "-m", "experiments.sample", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1 and "expected a --workdir made by" in done.stderr


def test_samples_do_not_depend_on_number_or_batch(tmp_path):
    """--num=5 --batch=4 gives the first five of --num=8 --batch=8, through the files."""
    from experiments import runs, sample
    from experiments.train import train

    train(small_config(steps=2), tmp_path)
    trained = runs.load_run(tmp_path)
    options = {"solver": "ancestral", "steps": 5, "grid": "log_snr", "tolerance": 1e-3}
    few, nfe = sample.generate(trained, 5, 4, 0, **options)
    many, _ = sample.generate(trained, 8, 8, 0, **options)
    assert nfe == 5 and np.mean(few != many[:5]) < 5e-3
    for wrong, words in (
        ({"label": 3}, "this model is unconditional"),
        ({"option": ("order=2",)}, "ancestral has variance"),
        ({"option": ("order",)}, "expected NAME=VALUE"),
        ({"solver": "amed"}, "python -m experiments.fit"),
        ({"solver": "adaptive", "option": ("order=2",)}, "has no options"),
        ({"diffusion": "sigma"}, "ancestral has no such noise; expected one of euler_maruyama"),
        ({"solver": "euler_maruyama", "diffusion": "sigma", "option": ("eta=2",)}, "expected one of the two"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            sample.generate(trained, 2, 2, 0, **options | wrong)
    same = lambda **more: sample.generate(trained, 2, 2, 0, **options | {"solver": "euler_maruyama"} | more)[0]
    np.testing.assert_array_equal(same(diffusion="sbdm", strength=4.0), same(option=("eta=2.0",)))
    assert sample.generate(trained, 2, 2, 0, **options | {"solver": "unipc", "option": ("order=2", "variant=bh1"), "threshold": "dynamic"})[1] == 5
