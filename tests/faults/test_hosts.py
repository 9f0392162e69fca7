"""Several processes on one machine: they train as one does, stop together, and end by name when one is killed or missing."""

import signal
import socket
import time

import pytest
from small import restore, same_training, small_config, small_flags

LIMIT = 60.0  # seconds in which the others must have ended


def begin(start, processes, workdir, only=None, flags=(), **training):
    """The commands of `only` some of `processes`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    named = [f"--coordinator=localhost:{port}", f"--processes={processes}", *flags]
    arguments = small_flags(workdir, **training)
    return [start("experiments.train", *arguments, *named, f"--process={i}") for i in (range(processes) if only is None else only)]


def last(command, words="error: "):
    """Its last line, which has `words`: a child of a process writes its errors, maybe just after its end."""
    end = time.monotonic() + 10.0
    while words not in command.said and time.monotonic() < end:
        time.sleep(0.01)
    return command.said.strip().splitlines()[-1]


def ended(commands, killed=()):
    """Wait for the commands that were not killed; what each said last, and how long it took."""
    began, said = time.monotonic(), []
    for command in commands:
        if command not in killed:
            assert command.wait(LIMIT) not in (0, 75), command.said
            said.append(last(command))
            assert "Check failure" not in command.said and "Traceback" not in command.said
    return said, time.monotonic() - began


def test_processes_train_as_one(start, tmp_path, times, count):
    """2 (and 4) processes, with either sharding, that resume half-way in the full version: losses and weights of one process."""
    flags, wide, config = {"steps": 6, "log_every": 1, "checkpoint_every": 3}, "--config.model.width=64", small_config(steps=6)
    config.model.width = 64
    assert start("experiments.train", *small_flags(tmp_path / "one", **flags), wide).wait() == 0
    cases = times([(2, "data")], [(n, sharding) for n in (2, 4) for sharding in ("data", "fsdp")])
    for n, sharding in cases:
        run = tmp_path / f"{n} {sharding}"
        for steps in times((6,), (3, 6)):
            commands = begin(start, n, run, flags=[f"--config.training.sharding={sharding}", wide], **flags | {"steps": steps})
            assert [command.wait() for command in commands] == [0] * n, [command.said for command in commands]
            assert f"step {steps}/{steps}" in commands[0].said and not any("step" in command.said for command in commands[1:])
        assert "resumed from step 3" in commands[0].said or len(cases) == 1
        same_training(tmp_path / "one", run, config)
    count("2 and 4 processes: losses and weights of one, to 1e-5", len(cases), len(cases))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_one_process_stops_all(start, tmp_path, count, number):
    """At the same step, which is saved once; the same commands resume."""
    flags = {"steps": 100_000, "checkpoint_every": 100_000, "log_every": 10, "keep": 2}
    commands = begin(start, 2, tmp_path / "run", **flags)
    commands[0].until("step 20/")
    commands[1].signal(number)
    assert [command.wait(30.0) for command in commands] == [75, 75], [command.said for command in commands]
    at = [last(command, "stopped by") for command in commands]
    assert at[0] == at[1] and "stopped by" in at[0]
    step = int(restore(tmp_path / "run" / "checkpoints").step)
    assert f"at step {step}, which is saved" in at[0]
    commands = begin(start, 2, tmp_path / "run", **flags | {"steps": step + 10})
    assert [command.wait() for command in commands] == [0, 0] and f"resumed from step {step}" in commands[0].said
    count(f"{number.name} to one of 2 processes: both save the same step", 2, 2)


def test_killed_process_is_named(start, tmp_path, times, count):
    cases, slowest = times([(2, 0)], [(2, 0), (2, 1), (4, 0), (4, 2)]), 0.0
    for n, dead in cases:
        commands = begin(start, n, tmp_path / f"{n}-{dead}", steps=100_000, checkpoint_every=100_000, log_every=10)
        commands[0].until("step 20/")
        commands[dead].signal(signal.SIGKILL)
        said, seconds = ended(commands, [commands[dead]])
        assert all(line.startswith(f"error: process {dead} has died") for line in said), said
        slowest = max(slowest, seconds)
    count("one of 2 and 4 processes killed: the others exit within 60 s and name it", len(cases), len(cases), f"slowest {slowest:.0f} s")


@pytest.mark.parametrize("missing", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_missing_process_is_named(start, tmp_path, times, count, missing):
    """The processes wait for it as long as they are told; by default the whole takes less than a minute."""
    cases, slowest = times([(2, ["--wait=3"])], [(2, []), (4, [])]), 0.0
    for n, flags in cases:
        began = time.monotonic()
        said, _ = ended(begin(start, n, tmp_path / "run", [i for i in range(n) if i != missing], flags))
        slowest = max(slowest, time.monotonic() - began)
        assert all(line.startswith(f"error: process {missing} did not come") for line in said), said
    assert slowest < LIMIT
    count(f"process {missing} of 2 and 4 missing: the others exit within 60 s and name it", len(cases), len(cases), f"slowest {slowest:.0f} s")


def test_mistake_is_said_in_one_line(start, tmp_path):
    """By all processes at once, which do not wait for each other's death."""
    commands = begin(start, 2, tmp_path / "run", batch=15)
    assert [command.wait(30.0) for command in commands] == [1, 1], [command.said for command in commands]
    for command in commands:
        assert last(command).startswith("error: config.training.batch = 15 cannot be divided over 2 devices")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--coordinator=localhost:1234"], "--coordinator needs to be with --process and --processes"),
        (["--processes=2", "--process=0"], "--process and --processes need to be with --coordinator"),
        (["--coordinator=localhost", "--processes=2", "--process=0"], "--coordinator=localhost: expected ADDRESS:PORT"),
        (["--coordinator=localhost:1234", "--processes=2", "--process=2"], "--process=2 of --processes=2: expected 0 to 1"),
        (["--coordinator=localhost:1234", "--processes=2", "--process=1", "--hosts=off"], "need to be without --hosts=off"),
    ],
)
def test_incomplete_flags(start, tmp_path, flags, said):
    command = start("experiments.train", *small_flags(tmp_path / "run"), *flags)
    assert command.wait() == 1 and said in command.said and len(command.said.strip().splitlines()) == 1


@pytest.mark.slow
def test_failed_process_is_named(start, tmp_path):
    """A mistake of one process alone, as a file that one host lacks: it says so, and the others who has failed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        named = [f"--coordinator=localhost:{free.getsockname()[1]}", "--processes=2"]
    good = start("experiments.train", *small_flags(tmp_path / "run"), *named, "--process=0")
    bad = start(
        "experiments.train", *small_flags(tmp_path / "run"), *named, "--process=1", "--config.data.name=npz", "--config.data.path=missing.npz"
    )
    (said, other), _ = ended([good, bad])
    assert "missing.npz" in other and said.startswith("error: process 1 has died"), (said, other)


@pytest.mark.slow
def test_cluster_is_found(start, tmp_path):
    """Under Slurm each process finds the others by the variables that srun sets; a command of one process refuses to be several."""
    port = {"JAX_COORDINATOR_PORT": str(20_000 + int(time.time() * 10) % 10_000)}
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", **port}
    flags = small_flags(tmp_path / "run")
    both = [start("experiments.train", *flags, **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
    assert [command.wait() for command in both] == [0, 0], [command.said for command in both]
    assert "2 x cpu" in both[0].said
    both = [start("experiments.sample", f"--workdir={tmp_path}/run", **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
    assert [command.wait() for command in both] == [1, 1], [command.said for command in both]
    assert all(last(command).startswith("error: this command is of one process") for command in both)
