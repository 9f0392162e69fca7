"""Models that a table trains for itself, and those that it is given."""

import contextlib
import io
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli, runs
from experiments.train import train


def trained(config: ConfigDict, folder: Path, quick: bool) -> runs.Run:
    """The run of `folder`, if `quick` after two silent steps; one that is there already goes on where it was."""
    if quick:
        config.training.update(steps=2, batch=8)
    with contextlib.redirect_stdout(io.StringIO()) if quick else contextlib.nullcontext(), cli.StopSignal() as stop:
        train(config, folder, stop)
    if stop.name:  # since its last step
        raise cli.Stopped(f"stopped by {stop.name}, {folder} is trained: the same command goes on from there")
    return runs.load_run(folder)


def given(workdir: str) -> runs.Run:
    """The run in --workdir. Raises ValueError if it does not generate from noise."""
    run = runs.load_run(workdir)
    runs.check_generates(run)
    runs.check_noise(run)
    return run


def digits_run(workdir: str) -> runs.Run:
    """The run in --workdir. Raises ValueError if it is not a generative one of the digits."""
    run = given(workdir)
    if run.dataset.name != "digits":
        raise ValueError(f"--workdir={workdir}: its data are {run.dataset.name}; expected a run on digits (make demo)")
    return run
