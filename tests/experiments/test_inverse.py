"""The command for inverse problems: resumable, the same whatever the batches and numbers, clear about what it cannot do."""

import numpy as np
import pytest
from small import small_config

from experiments import cli, inverse, runs
from experiments.kept import Kept
from experiments.train import train

OPTIONS = {"solver": "ancestral", "steps": 3, "grid": "log_snr", "noise": 0.05, "zeta": 0.3, "iterations": 2, "snr": 0.16}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(small_config(steps=2), folder)
    return runs.load_run(folder)


@pytest.mark.parametrize("method", ["replacement", "pigdm"])
@pytest.mark.slow
def test_samples_depend_on_image_and_number_alone(run, tmp_path, method):
    """Stopped after a batch and resumed, in other batches, of fewer images: the same samples. What is known to replacement is in them."""
    solve = lambda num, batch, **more: inverse.solve(run, "super_resolution", num, 2, batch, 0, method=method, **OPTIONS, **more)

    def interrupt(line, **_):
        raise cli.Stopped(line)

    with pytest.raises(cli.Stopped, match="4/8 samples"):
        solve(4, 4, kept=Kept(tmp_path / "a"), progress=interrupt)
    found, few = solve(4, 4, kept=Kept(tmp_path / "a")), solve(3, 8)
    assert found["samples"].shape == (4, 2, *run.dataset.shape) and found["nfe"] == (5 if method == "replacement" else 3)
    np.testing.assert_array_equal(few["measurement"], found["measurement"][:3])
    np.testing.assert_allclose(few["samples"], found["samples"][:3], atol=1e-3 * np.abs(found["samples"]).max())
    assert np.abs(found["samples"][:, 0] - found["samples"][:, 1]).max() > 0.01
    if method == "replacement":
        assert found["figures"]["residual"] < 1e-5


def test_standard_error_of_psnr():
    """That of the mean over 4000 draws of 50 images, to 5 %, and none of a single image; images that are 0.1 off have 26 dB."""
    square = np.random.default_rng(0).gamma(4.0, 0.01, (4000, 50))
    found = np.array([inverse.psnr(s) for s in square])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.05)
    assert inverse.psnr(np.array([0.01])) == (pytest.approx(26.02, abs=0.01), None) and inverse.rms(np.zeros(3)) == (0, 0)


def test_mistakes_are_refused(run):
    for words, problem, num, options in (
        ("with colour", "colorization", 1, {}),
        ("--num=361, --samples=1: expected 1 to 360", "blur", 361, {}),
        ("--steps=1: expected at least 2", "blur", 1, {"steps": 1}),
        ("a predictor makes one evaluation a step", "blur", 1, {"method": "replacement", "solver": "heun"}),
        ("--noise=-1", "blur", 1, {"noise": -1.0}),
    ):
        with pytest.raises(ValueError, match=words):
            inverse.solve(run, problem, num, 1, 1, 0, **({"method": "moment"} | OPTIONS | options))
