"""Several processes, on several hosts or on one: JAX's coordination service and XLA's collectives (gloo on CPUs), nothing of our own.

Under Slurm, Open MPI, Kubernetes and on TPU pods the same command started on every host finds the others by itself (`jax.distributed.initialize`);
elsewhere --coordinator=ADDRESS:PORT --processes=N --process=I say it. A process that never comes or dies ends the others: the coordination service
notices, and one line says which it is. SIGTERM or SIGINT to one process stops all at the same step.
"""

import os
import re
import signal
import sys
import time
from functools import partial

import jax
from absl import flags
from jax._src import distributed
from jax.experimental import multihost_utils

HOSTS = flags.DEFINE_enum("hosts", "auto", ["auto", "off"], "Whether processes that a cluster started together find each other; off: each is alone.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "ADDRESS:PORT of process 0, where no cluster says it.")
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator, the number of processes.")
PROCESS = flags.DEFINE_integer("process", None, "With --coordinator, the number of this process, from 0.")
WAIT = flags.DEFINE_integer("wait", 30, "Seconds that processes wait for each other at the start.")

HEARTBEAT = 20  # seconds of silence after which a process counts as dead
GRACE = 15  # seconds that a process that fails waits for the others to fail alike


def join() -> int:
    """Join the other processes, if there are any, and return how many there are. Raises ValueError for flags that do not go together.

    Comes before anything that starts a backend. If a process is missing after --wait seconds, or dies later, JAX ends this one.
    """
    named = {"--coordinator": COORDINATOR.value, "--processes": PROCESSES.value, "--process": PROCESS.value}
    given = {flag for flag, value in named.items() if value is not None}
    if given and (HOSTS.value == "off" or len(given) < 3):
        missing = "without --hosts=off" if HOSTS.value == "off" else f"with {' and '.join(sorted(named.keys() - given))}"
        raise ValueError(f"{' and '.join(sorted(given))} {'need' if len(given) > 1 else 'needs'} to be {missing}")
    if given:
        address, _, port = COORDINATOR.value.rpartition(":")
        if not address or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"--coordinator={COORDINATOR.value}: expected ADDRESS:PORT of process 0, as in 10.0.0.1:1234")
        if PROCESSES.value < 1 or not 0 <= PROCESS.value < PROCESSES.value:
            raise ValueError(f"--process={PROCESS.value} of --processes={PROCESSES.value}: expected 0 to {PROCESSES.value - 1}")
    if HOSTS.value == "off" or not given and not _cluster():
        return 1
    _say_in_one_line()
    # the service, unlike the clients, knows who is missing, and tells the others if it gives up before they do
    start = distributed._jax.get_distributed_runtime_service
    distributed._jax.get_distributed_runtime_service = partial(start, cluster_register_timeout=WAIT.value)
    jax.distributed.initialize(
        COORDINATOR.value,
        PROCESSES.value,
        PROCESS.value,
        initialization_timeout=WAIT.value + 5,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
        cluster_detection_method="deactivate" if given else None,
    )
    distributed._jax.get_distributed_runtime_service = start
    signal.signal(signal.SIGINT, lambda number, frame: signal.raise_signal(signal.SIGTERM))  # which JAX hears: see `stopping`
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # process 0 speaks for all
    return jax.process_count()


def _cluster() -> bool:
    """Whether this process is one of several that a cluster started."""
    try:
        found = distributed.clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, [], None, WAIT.value)
    except (RuntimeError, KeyError, OSError) as error:
        raise ValueError(
            f"there is a cluster, but it does not say where the other processes are ({error}): name them by flags, or --hosts=off"
        ) from None
    return (found[1] or 1) > 1


def stopping(stop, step: int) -> bool:
    """Whether to stop after `step`: of several processes all answer alike, if any of them was asked to. To be called once a step.

    stop: see `cli.StopSignal`; of several processes JAX's preemption service hears the signals and agrees on a step.
    """
    return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else bool(stop)


def barrier(name: str) -> None:
    """Wait for the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def writes() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def await_verdict(error: Exception) -> None:
    """Where `error` is of a broken collective, because another process is dead: wait for JAX to find out who it is, and to end this one."""
    if jax.distributed.is_initialized() and (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
        time.sleep(HEARTBEAT + GRACE)


def leave(code: int) -> None:
    """Before a process exits for an error: wait for the others to fail alike. If they do not, end at once, so that JAX tells them of it."""
    if not jax.distributed.is_initialized():
        return
    try:
        distributed.global_state.client.wait_at_barrier("failed", GRACE * 1000)
    except jax.errors.JaxRuntimeError:
        os._exit(code)  # the coordination service would wait for them
    if jax.process_index():  # or it would say, beside its own error, that process 0 is gone
        os._exit(code)
    time.sleep(1.0)


def verdict(text: str) -> str | None:
    """One line for what JAX's coordination service says at length when it ends a process."""
    if "Terminating process because the JAX distributed service" not in text:
        return None
    if failed := re.search(r"Shutdown::.*first task at the barrier: (\d+)", text, re.DOTALL):
        return f"process {failed[1]} has failed: all stop"
    if late := re.search(r"timed out task names:\n((?:\d+\n)+)", text):
        numbers = ", ".join(sorted(set(late[1].split()), key=int))
        return f"process {numbers} did not come within --wait={WAIT.value} s: start all, or one with --hosts=off"
    dead = set(re.findall(r"Task (\d+) heartbeat timeout", text))
    for several in re.findall(r"stopped sending heartbeats\):\n((?:\d+\n)+)", text):
        dead |= set(several.split())
    if dead:
        return f"process {', '.join(sorted(dead, key=int))} has died or cannot be reached: all stop. The same commands on all hosts resume"
    if "RegisterTask" in text and "Deadline" in text:
        return f"process 0 did not come within --wait={WAIT.value} s, or {COORDINATOR.value or 'its address'} is not its address"
    if "leader task" in text or "RegisterTask" in text:
        return "process 0 has died or cannot be reached: all stop. The same commands on all hosts resume"
    return None


def _say_in_one_line() -> None:
    """Have a child read what this process writes to stderr, and tell in one line why JAX ended it: that is a C++ abort, which cannot be caught."""
    read, write = os.pipe()
    if os.fork():
        os.dup2(write, 2)
        os.close(read), os.close(write)
        return
    os.close(write)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    kept = []
    for line in open(read, errors="replace"):
        if kept or re.match(r"[WEF]\d{4} .*(coordination_service|client\.h)", line):
            kept.append(line)
        else:
            os.write(2, line.encode())
    said = verdict("".join(kept))
    os.write(2, f"error: {said}\n".encode() if said else "".join(kept).encode())
    os._exit(0)
