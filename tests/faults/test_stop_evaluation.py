"""SIGTERM to samples and evaluations at random moments: they leave within 30 seconds with the code of a command that goes on, and it does."""

import json
import signal
import time

import numpy as np
import pytest

from experiments.cli import RESUMABLE

PHASES = {  # the command, and what it writes
    "sample": (["--num=160", "--batch=16", "--steps=12", "--solver=ancestral"], "samples/ancestral_12.npz"),
    "evaluate": (["--groups=2", "--limit=100", "--batch=16", "--steps=12"], "eval/metrics.json"),
}


@pytest.mark.parametrize("name", ["sample", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_stopped_evaluations_go_on(undisturbed, tmp_path, times, count, name):
    """Moments from the first batch to the end of an undisturbed command, by seed 0; the result is the same, and each figure is in the log once."""
    command, workdir = undisturbed(name, *PHASES[name]), tmp_path / "run"
    held, n, slowest = 0, times(1, 10), 0.0
    for wait in np.random.default_rng(0).uniform(0, command.seconds, n):
        stopped = command.run()
        stopped.until("/")
        time.sleep(wait)
        clock = time.monotonic()
        stopped.signal(signal.SIGTERM)
        code = stopped.wait()
        slowest = max(slowest, time.monotonic() - clock)
        said = "the same command goes on" in stopped.said and "Traceback" not in stopped.said
        again = command.run()
        assert again.wait() == 0, again.said
        held += (code == 0 or (code == RESUMABLE and said)) and command.written.read_bytes() == command.expected
    log = workdir / "eval" / "metrics.jsonl"
    figures = [json.loads(line)["figure"] for line in log.read_text().splitlines()] if log.exists() else []
    assert len(figures) == len(set(figures)) and slowest < 30
    assert not list(workdir.rglob("*.partial")) and not list(workdir.rglob("*.tmp*"))
    count(f"SIGTERM in {name}, resumable", held, n, f"at most {slowest:.1f} s to leave")
