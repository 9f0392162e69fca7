"""The doctor: what is missing is said with what mends it, and never ends in a traceback."""

import importlib.metadata
import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from experiments import checkpoints, doctor

ROOT = Path(__file__).parents[2]


def of(topic, findings):
    return [finding for finding in findings if finding.topic == topic]


def test_here_nothing_is_missing(capsys):
    """All packages of setup.py are named with their versions."""
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "!!" not in said and "required and missing: nothing" in said
    for requirement in doctor.asked()[1]:
        name = requirement.partition(">")[0]
        assert f"{name} {importlib.metadata.version(name)}" in said
    assert "cpu: " in said and "digits" in said


def test_missing_and_old_packages(monkeypatch, capsys):
    version = importlib.metadata.version

    def altered(name):
        if name == "diffrax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.4.30" if name == "jax" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", altered)
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    for words in ("diffrax is missing", "pip install --upgrade 'diffrax>=", "jax 0.4.30 is too old", "pip install --upgrade 'jax>=", "missing: 2"):
        assert words in said
    assert not of("devices", doctor.examine())  # nothing is imported that may not be there


def test_without_any_package():
    """Not even packaging: two lines, 1, no traceback."""
    done = subprocess.run([sys.executable, "-S", "-m", "experiments.doctor"], capture_output=True, text=True, cwd=ROOT, env={})
    assert done.returncode == 1 and done.stderr == "" and "pip install --editable ." in done.stdout, done.stderr


@pytest.mark.parametrize("there, extra", [("1 x NVIDIA GPU", "cuda"), ("4 x TPU", "tpu")])
def test_cpu_beside_an_accelerator(monkeypatch, there, extra):
    monkeypatch.setattr(doctor, "accelerators", lambda: there)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (found,) = of("devices", doctor.devices())
    assert there in found.said and f".[{extra}]" in found.mend and not found.required
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (found,) = of("devices", doctor.devices())
    assert found.mend == "unset JAX_PLATFORMS (it is cpu)"


def test_a_broken_backend_is_a_finding(monkeypatch):
    import jax

    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda':\n driver too old")

    monkeypatch.setattr(jax, "devices", fail)
    (found,) = of("devices", doctor.examine())
    assert found.required and "Unable to initialize backend 'cuda': driver too old" in found.said


def test_a_run(tmp_path, monkeypatch, capsys):
    """Its checkpoints, of which one has a file that is not as it was, its last logged step, behind which half a line is left, and whether three more
    checkpoints fit."""
    run = tmp_path / "run"
    for step in (5, 10):
        folder = run / "checkpoints" / str(step)
        (folder / "state").mkdir(parents=True)
        (folder / "state" / "a").write_bytes(bytes(2048))
        found = checkpoints.sums(folder)
        (folder / "manifest.json").write_text(json.dumps(found | {"manifest.json": checkpoints.own_sum(found)}))
    (run / "config.json").write_text("{}")
    (run / "log.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in (4, 8, 12)) + '{"st')
    assert doctor.main([f"--workdir={run}"]) == 0
    said = capsys.readouterr().out
    assert "checkpoints 5, 10, the newest of 2 KiB" in said and "corrupt" not in said
    assert "last logged step 12; a resumed run begins 2 steps before it" in said
    (run / "checkpoints" / "5" / "state" / "a").write_bytes(bytes(2047) + b"1")
    (found,) = (finding for finding in doctor.examine(str(run)) if "checkpoints/5/state/a is corrupt" in finding.said)
    assert not found.required and "falls back" in found.mend
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 5000, 5000))
    (found,) = of("workdir", doctor.examine(str(run)))
    assert found.required and "5 KiB free, 6 KiB needed" in found.said and found.mend.startswith("free 2 KiB")
    (run / "config.json").write_text("{")
    assert "not readable JSON" in of("workdir", doctor.examine(str(run)))[0].said


@pytest.mark.parametrize("argument", ["--wrokdir=runs/digits", "runs/digits"])
def test_mistakes(argument, capsys):
    assert doctor.main([argument]) == 1
    assert capsys.readouterr().err == f"error: unexpected argument '{argument}': expected --workdir=...\n"
