"""Models that a table trains for itself, and the one that it is given."""

import contextlib
import io
from pathlib import Path

from ml_collections import ConfigDict

from experiments import runs
from experiments.train import train


def trained(config: ConfigDict, folder: Path, quick: bool) -> runs.Run:
    """The run of `folder`, if `quick` after two silent steps; one that is there already goes on where it was."""
    if quick:
        config.training.update(steps=2, batch=8)
    with contextlib.redirect_stdout(io.StringIO()) if quick else contextlib.nullcontext():
        train(config, folder)
    return runs.load_run(folder)


def digits_run(workdir: str) -> runs.Run:
    """The run in --workdir. Raises ValueError if it is not one of the digits."""
    run = runs.load_run(workdir)
    if run.dataset.name != "digits":
        raise ValueError(f"--workdir={workdir}: its data are {run.dataset.name}; expected a run on digits (make demo)")
    return run
