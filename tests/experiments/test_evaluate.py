"""The commands of evaluation from files of samples, with random weights of Inception (slow)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import data, inception, statistics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def command(tmp_path, name, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    line = [sys.executable, "-m", f"experiments.{name}", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)


def test_from_images_to_fid(tmp_path):
    """Weights converted, statistics of a file's images, and figures of others; FID of the reference's own images is 0, of others more."""
    rng = np.random.default_rng(0)
    params = {n: rng.standard_normal(s).astype(np.float32) * (2 / np.prod(s[:-1])) ** 0.5 for n, s in inception.shapes().items()}
    weights = tmp_path / "random.safetensors"
    inception.save(inception.Features(params, "0" * 64), weights)
    images = rng.integers(0, 256, (24, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "data.npz", x=images, x_test=images[:4])
    options = f"--inception_weights={weights}", "--resize=torch"
    made = command(tmp_path, "statistics", "--name=npz", f"--path={tmp_path / 'data.npz'}", *options, f"--out={tmp_path / 'stats.npz'}")
    assert made.returncode == 0 and "24 images of npz to train" in made.stdout, made.stderr
    found = {}
    for name, samples in (("same", images), ("other", images // 2)):
        np.savez(tmp_path / f"{name}.npz", arr_0=samples)
        done = command(tmp_path, "evaluate", f"--samples={tmp_path / name}.npz", f"--reference={tmp_path / 'stats.npz'}", *options)
        assert done.returncode == 0 and "resize torch" in done.stdout, done.stderr
        lines = [json.loads(line) for line in open(tmp_path / f"{name}.eval" / "metrics.jsonl")]
        found[name] = {line["figure"]: line["value"] for line in lines}
        for line in lines:
            assert line["n"] == line["reference_n"] == 24 and line["inception"] == "00000000" and line["resize"] == "torch"
            assert line["reference"] == statistics.read(tmp_path / "stats.npz").hash
    assert abs(found["same"]["FID-24"]) < 1e-3 < 0.1 < found["other"]["FID-24"]
    assert found["same"]["Inception precision-24"] == found["same"]["Inception recall-24"] == 1


def test_samples_of_a_file_without_inception(tmp_path):
    """Held-out digits as samples of a file: figures near the floor, labels agree; a misfit ends in one line."""
    from configs import digits

    dataset = data.load(digits.get_config().data)
    test = dataset.values["test"]
    np.savez(tmp_path / "digits.npz", arr_0=statistics.images_of(dataset, test), arr_1=dataset.labels["test"])
    options = f"--config={ROOT / 'configs' / 'digits.py'}", "--groups=3"
    done = command(tmp_path, "evaluate", f"--samples={tmp_path / 'digits.npz'}", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "digits.eval" / "metrics.json").read_text())["metrics"]
    assert rows["label agreement"]["value"] > 0.95 and rows["label agreement"]["n"] == 120 and rows["precision"]["value"] > 0.9
    np.savez(tmp_path / "digits.npz", arr_0=test[:, :4])
    done = command(tmp_path, "evaluate", f"--samples={tmp_path / 'digits.npz'}", *options)
    assert done.returncode == 1 and "expected uint8 (8, 8, 1), as digits" in done.stderr and "Traceback" not in done.stderr
