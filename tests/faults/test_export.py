"""Samples and likelihoods of commands that are killed again and again: the files of one that was left alone, and nothing else."""

import signal
import time

import numpy as np
import pytest

COMMANDS = {  # what they write, byte for byte
    "sample": (["--num=160", "--batch=16", "--steps=12", "--solver=ancestral"], "samples/ancestral_12.npz"),
    "likelihood": (["--batch=8", "--num=64", "--probes=1", "--rtol=0.1", "--atol=0.1"], "eval/likelihood_test.npz"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", pytest.param("likelihood", marks=pytest.mark.slow)])
def test_killed_exports_are_what_they_were(undisturbed, times, count, name):
    """SIGKILL at moments spread over a command's time, then the same command: the same bytes, and no temporary or partial files."""
    command = undisturbed(name, *COMMANDS[name])
    folder = command.written.parent
    files = {f.name for f in folder.iterdir()}
    held, points = 0, times(2, 10)
    for wait in np.linspace(0.0, command.seconds, points, endpoint=False):
        command.written.unlink()
        killed = command.run()
        killed.until("/")
        time.sleep(wait)
        killed.signal(signal.SIGKILL)
        killed.wait()
        again = command.run()
        assert again.wait() == 0, again.said
        same = command.written.read_bytes() == command.expected and {f.name for f in folder.iterdir()} == files
        held += same and killed.process.exitcode in (-signal.SIGKILL, 0)
    count(f"{name} killed, the same bytes and nothing else", held, points)
