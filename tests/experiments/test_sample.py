"""Samples of a conditional model: resumable, the same bytes, with their labels."""

import zipfile

import numpy as np
import pytest
from small import small_config

from experiments import cli, runs, sample
from experiments.kept import Kept, savez
from experiments.train import train

OPTIONS = {"solver": "ancestral", "steps": 4, "grid": "log_snr", "tolerance": 1e-3}


def test_interrupted_samples_go_on(tmp_path):
    """Stopped after each batch and resumed: the same bytes as in one go, in a file without a clock; other settings are not mixed in."""
    config = small_config(steps=2)
    config.model.num_classes = 10
    train(config, tmp_path)
    run = runs.load_run(tmp_path)
    whole, nfe = sample.generate(run, 20, 8, 0, **OPTIONS)

    def interrupt(line, **_):
        if "kept" not in line:
            raise cli.Stopped(line)

    for done in (8, 16):
        with pytest.raises(cli.Stopped, match=f"{done}/20 samples"):
            sample.generate(run, 20, 8, 0, kept=Kept(tmp_path / "a"), progress=interrupt, **OPTIONS)
    said, kept = [], Kept(tmp_path / "a")
    values, again = sample.generate(run, 20, 8, 0, kept=kept, progress=lambda line, **_: said.append(line), **OPTIONS)
    assert said[0] == "16 samples were kept" and said[1].startswith("20/20 samples") and len(said) == 2
    for name, array in (("whole", whole), ("parts", values)):
        savez(tmp_path / f"{name}.npz", arr_0=array, arr_1=run.labels(20))
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes() and nfe == again
    assert {member.date_time[0] for member in zipfile.ZipFile(tmp_path / "whole.npz").infolist()} == {1980}
    np.testing.assert_array_equal(sample.generate(run, 12, 8, 0, kept=Kept(tmp_path / "a"), **OPTIONS)[0], whole[:12])

    sample.generate(run, 8, 8, 0, label=3, kept=Kept(tmp_path / "a"), **OPTIONS)
    assert len([*tmp_path.glob("a.*.partial")]) == 2
    np.testing.assert_array_equal(run.labels(12), [*range(10), 0, 1])
    np.testing.assert_array_equal(run.labels(3, 7), [7, 7, 7])
    for file in kept.folder.iterdir():
        file.write_bytes(b"damaged")
    np.testing.assert_array_equal(sample.generate(run, 20, 8, 0, kept=Kept(tmp_path / "a"), **OPTIONS)[0], whole)
    kept.remove()
    assert not kept.folder.exists()


@pytest.mark.slow
def test_a_corrector_after_each_step(tmp_path):
    """Evaluations as made, the denoising one included; samples that do not depend on the batch; a predictor that cannot be one ends in a line."""
    train(small_config(steps=2), tmp_path)
    run = runs.load_run(tmp_path)
    options = {**OPTIONS, "corrector": "langevin", "snr": 0.2, "corrector_steps": 2}
    options["solver"] = "reverse_diffusion"
    few, nfe = sample.generate(run, 3, 2, 0, **options)
    many, _ = sample.generate(run, 8, 8, 0, **options)
    assert nfe == 3 * 3 + 1 and np.mean(few != many[:3]) < 5e-3
    assert sample.generate(run, 2, 2, 0, **options | {"solver": "none"})[1] == 3 * 2 + 1
    for wrong, words in (
        ({"solver": "heun"}, "a predictor makes one evaluation a step"),
        ({"solver": "adaptive"}, "has no steps to correct"),
        ({"solver": "none", "corrector": "none"}, "a corrector alone"),
        ({"snr": 0.0}, "snr above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            sample.generate(run, 2, 2, 0, **options | wrong)
