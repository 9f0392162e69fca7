"""Weights in safetensors: bit-exact, usable as a run, and refused when they are not what they were."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import default
from experiments import data, export, runs, weights
from experiments.train import train


@pytest.mark.slow
def test_latents_from_a_file_to_samples_elsewhere(tmp_path):
    """A transformer on labelled latents of an npz: trained, judged, exported, and sampled where the file is not."""
    rng = np.random.default_rng(0)
    file = tmp_path / "latents.npz"
    x, y = rng.normal(size=(80, 4, 4, 4)), np.arange(80) % 3
    np.savez(file, x=x, y=y, x_test=x[:20], y_test=y[:20])
    config = default.get_config()
    config.data.update(name="npz", path=str(file))
    config.model.update(name="DiT", width=16, depth=1, num_heads=2, num_classes=3)
    config.training.update(batch=8, steps=2)
    train(config, tmp_path / "run")
    command = lambda name, *words: subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *words], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    judged = command("evaluate", f"--workdir={tmp_path / 'run'}", "--steps=2", "--groups=2")
    assert judged.returncode == 0 and "metrics.json" in judged.stdout and "None" not in judged.stdout, judged.stderr
    export.write(tmp_path / "run", tmp_path / "out")
    expected = runs.load_run(tmp_path / "out").dataset
    file.unlink()
    sampled = command("sample", f"--workdir={tmp_path / 'out'}", "--steps=2", "--num=5")
    assert sampled.returncode == 0, sampled.stderr
    assert np.load(tmp_path / "out" / "samples" / "dpm_solver_pp_2.npz")["arr_0"].shape == (5, 4, 4, 4)
    found = runs.load_run(tmp_path / "out").dataset
    assert all(getattr(found, name) == getattr(expected, name) for name in data.FACTS)


def test_an_export_is_a_run(tmp_path):
    config = default.get_config()
    config.data.name = "8gaussians"
    config.model.update(name="ResidualMLP", width=8, depth=1)
    config.training.update(batch=8, steps=3)
    trained = train(config, tmp_path / "run")
    out = tmp_path / "out"
    said = export.write(tmp_path / "run", out)
    assert {f.name for f in out.iterdir()} == {"ema.safetensors", "raw.safetensors", "config.json", "export.json"}
    assert said["step"] == 3 and said["parameters"] == sum(a.size for a in jax.tree.leaves(trained.params))
    for name, expected in (("ema", trained.ema), ("raw", trained.params)):
        run = runs.load_run(out, weights=name)
        assert run.step == 3 and run.fingerprint()
        jax.tree.map(np.testing.assert_array_equal, run.params, expected)
    with pytest.raises(FileNotFoundError, match="an export of step 3"):
        runs.load_run(out, step=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no export"):
        export.write(tmp_path / "run", tmp_path / "other")

    file = weights.file(out, "ema")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="ema.safetensors is corrupt"):
        runs.load_run(out)
    export.write(tmp_path / "run", out)  # mends it
    changed = json.loads((out / "config.json").read_text())
    changed["model"]["width"] = 16
    (out / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="does not fit its config.json: .* expected"):
        runs.load_run(out)
    (out / "export.json").unlink()
    with pytest.raises(ValueError, match="export.json is missing or damaged"):
        runs.load_run(out)
