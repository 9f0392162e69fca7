"""Fault injection: runs that are stopped, killed, starved of disk and fed broken files.

`make faults` injects each as often as the table of the README says (--faults), `make test` a few times; both print the counts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Command
from small import small_flags


@dataclass
class Undisturbed:
    """A command on a small run that nothing interrupted. run() starts it again; written: its file, of `expected` bytes; seconds: from its first
    batch."""

    run: Callable[[], Command]
    written: Path
    expected: bytes
    seconds: float


@pytest.fixture
def undisturbed(start, tmp_path):
    """undisturbed("sample", options, "samples/...npz") -> Undisturbed, whose run is in tmp_path/run."""

    def once(name: str, options: list[str], written: str) -> Undisturbed:
        workdir = tmp_path / "run"
        trained = start("experiments.train", *small_flags(workdir, steps=2))
        assert trained.wait() == 0, trained.said
        run = lambda: start(f"experiments.{name}", f"--workdir={workdir}", *options)
        first = run()
        first.until("/")  # the first batch
        begun = time.monotonic()
        assert first.wait() == 0, first.said
        return Undisturbed(run, workdir / written, (workdir / written).read_bytes(), time.monotonic() - begun)

    return once


@pytest.fixture
def times(request):
    """times(short, full): how often to repeat a fault, in `make test` and in `make faults`."""
    return lambda short, full: full if request.config.getoption("--faults") else short


@pytest.fixture
def count(record_property):
    """count("SIGKILL", held, of): what is printed at the end of the run; all must hold."""

    def say(fault: str, held: int, of: int, also: str = "") -> None:
        record_property("fault", f"{fault}: {held}/{of}{also and f', {also}'}")
        assert held == of, f"{fault}: {held}/{of}"

    return say
