"""Training that is stopped or killed at any moment, and the same command again."""

import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small import restore, same, small_config, small_flags

from experiments import cli, data
from experiments.train import train


class After:
    """Truthy from the nth time that it is asked."""

    def __init__(self, n):
        self.left = n

    def __bool__(self):
        self.left -= 1
        return self.left <= 0


def test_stopped_at_3_of_200_steps(tmp_path, monkeypatch, count):
    """The state and the next ten batches are those of an undisturbed run, to the last bit."""
    right, seen = data.batches, {}

    def batches(*args):
        seen[args[3]] = []
        for batch in right(*args):
            seen[args[3]].append(batch)
            yield batch

    monkeypatch.setattr(data, "batches", batches)
    config = small_config(steps=200, checkpoint_every=100)
    with pytest.raises(cli.Stopped, match="stopped by request at step 3, which is saved"):
        train(config, tmp_path / "run", After(3))
    resumed = train(config, tmp_path / "run")
    whole = train(config, tmp_path / "whole")
    assert int(resumed.step) == 200
    held = same(resumed, whole) + sum(same(a, b) for a, b in zip(seen[3][:10], seen[0][3:13], strict=True))
    count("stopped at 3 of 200 steps: state and next 10 batches identical, 0 ULP", held, 11)


def test_two_signals_at_once_are_one_stop():
    """As of a process group, whose parents pass on what their children have got; a later one does not wait. Signals are then what they were."""
    before = signal.getsignal(signal.SIGTERM)
    with cli.StopSignal() as stop:
        assert not stop
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop and stop.name == "SIGTERM"
        stop.since -= 1.1
        with pytest.raises(cli.Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def temporary(workdir):
    return [f for f in workdir.rglob("*") if "tmp" in f.name]


def until_saving(workdir, command):
    """Wait until a checkpoint is being written; its step."""
    while command.process.is_alive():
        if found := [int(f.name.split(".")[0]) for f in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")]:
            return found[0]
        time.sleep(0.0005)


def steps_said(command):
    """(the step that it resumed from or 0, the last that it printed)"""
    resumed = re.findall(r"^resumed from step (\d+)$", command.said, re.M)
    printed = re.findall(r"^step (\d+)/.*s/s", command.said, re.M)
    return int(resumed[-1]) if resumed else 0, int(printed[-1]) if printed else 0


def ends_as_undisturbed(start, workdir, steps):
    """The command once more, to its end: the state of an undisturbed run to the last bit, and nothing temporary."""
    done = start("experiments.train", *small_flags(workdir, steps=steps, log_every=100, checkpoint_every=1000, keep=2))
    assert done.wait(600) == 0, done.said[-2000:]
    whole = train(small_config(steps=steps, log_every=100, checkpoint_every=steps), workdir.with_name("whole"))
    config = small_config(steps=steps)
    return same(restore(workdir / "checkpoints", config=config), jax.device_get(whole)) and not temporary(workdir)


PHASES = {"compile": "compiling ...", "train": "steps/s", "save": "steps/s"}


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm(phase, start, tmp_path, times, count):
    """It saves, says so, and leaves with its own exit code within 30 s; the same command goes on from that very step (seed 0)."""
    rng, n, held, longest, workdir = np.random.default_rng(0), times(1, 10), 0, 0.0, tmp_path / "run"
    training, last = {"steps": 100_000, "log_every": 1, "checkpoint_every": 20, "keep": 2}, 0
    for i in range(n):
        command = start("experiments.train", *small_flags(workdir, **training))
        command.until(PHASES[phase])
        if phase == "save":
            until_saving(workdir, command)
        time.sleep(rng.uniform(0, {"compile": 0.2, "train": 0.3, "save": 0.03}[phase]))
        clock = time.monotonic()
        command.signal((signal.SIGTERM, signal.SIGINT)[i % 2])
        code, seconds = command.wait(60), time.monotonic() - clock
        longest = max(longest, seconds)
        resumed = steps_said(command)[0]
        stopped = re.search(r"^stopped by SIG(TERM|INT) at step (\d+), which is saved: the same command resumes$", command.said, re.M)
        if phase == "compile" and "compiled in" not in command.said:  # there is nothing to save yet
            stopped = re.search(r"stopped by SIG(TERM|INT)(): the same command goes on", command.said)
        held += bool(code == cli.RESUMABLE and stopped and resumed == last and (seconds <= 30 or phase == "compile"))
        last = int(stopped[2]) if stopped and stopped[2] else last
    whole = ends_as_undisturbed(start, workdir, last + 10)
    count(f"SIGTERM, SIGINT in {phase}: saved, resumed and ended as undisturbed", held * whole, n, f"at most {longest:.1f} s")


def test_sigkill(start, tmp_path, times, count):
    """Killed at random moments, every other one while a checkpoint is written (seed 0): it resumes, with at most one interval lost (counted from
    the checkpoint that was being written), nothing temporary left after the start, and ends as an undisturbed run."""
    rng, n, held, during, workdir = np.random.default_rng(0), times(4, 100), 0, 0, tmp_path / "run"
    training, interval = {"steps": 100_000, "log_every": 1, "checkpoint_every": 20, "keep": 2}, 20
    least, most = 0, 0  # where it may resume
    for i in range(n + 1):
        command = start("experiments.train", *small_flags(workdir, **training))
        command.until("compiling ...")
        left, resumed = temporary(workdir), steps_said(command)[0]
        if i > 0:
            held += least <= resumed <= most and not left
        if i == n:
            command.process.kill()
            break
        command.until("steps/s")
        if i % 2:
            until_saving(workdir, command)
            time.sleep(rng.uniform(0, 0.03))
        else:
            time.sleep(rng.uniform(0, 0.6))
        command.process.kill()
        command.process.join()
        writing = [int(f.name.split(".")[0]) for f in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")]
        most = steps_said(command)[1] + 1  # the last may not have been printed
        least = max(min([most, *writing]) - interval - 1, 0)
        during += bool(writing)
    assert during >= times(0, 40)
    whole = ends_as_undisturbed(start, workdir, most + 10)
    count("SIGKILL: resumed, at most one interval lost, nothing temporary, ended as undisturbed", held * whole, n, f"{during} while saving")


def test_a_stop_is_heard_where_nothing_can_be_raised(tmp_path):
    """In a callback of the garbage collector Python drops exceptions."""
    program = """
import gc, os, signal
from experiments import cli
gc.callbacks.append(lambda phase, info: cli.leave(signal.SIGTERM, None))
cli.run(gc.collect)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == cli.RESUMABLE and "stopped by SIGTERM" in done.stderr and not done.stdout


def test_a_stop_while_importing(tmp_path):
    """It has the same exit code, from the first tenths of a second."""
    command = subprocess.Popen([sys.executable, "-m", "experiments.train", *small_flags(tmp_path)])
    time.sleep(1.0)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == cli.RESUMABLE
