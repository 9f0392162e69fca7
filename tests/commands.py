"""The fixture `start`: commands in processes of their own, forked of one that has done the imports, which take six seconds."""

import multiprocessing
import os
import runpy
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")  # it imports, but starts no backend and no thread of one: it may fork
SERVER.set_forkserver_preload([f"experiments.{name}" for name in ("train", "sample", "likelihood", "evaluate", "export", "tables.__main__")])


@dataclass
class Command:
    """A running `python -m` command: its process, and the file that it prints to."""

    process: multiprocessing.process.BaseProcess
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def until(self, words: str, timeout: float = 120.0) -> None:
        """Wait until it has printed `words`, or has ended."""
        end = time.monotonic() + timeout
        while words not in self.said and self.process.is_alive():
            assert time.monotonic() < end, f"'{words}' not printed in {timeout} s: {self.said[-2000:]}"
            time.sleep(0.002)

    def wait(self, timeout: float = 300.0) -> int:
        """Its exit code, negative if it was ended by a signal."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.said[-2000:]}"
        return self.process.exitcode

    def signal(self, number: signal.Signals) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)


@pytest.fixture
def start(tmp_path_factory):
    """start("experiments.train", "--config=...", folder=..., XLA_FLAGS=...) -> Command. What still runs when the test ends is killed."""
    running, outputs = [], tmp_path_factory.mktemp("output")

    def begin(module: str, *arguments: str, folder: Path = ROOT, **environment: str) -> Command:
        output = outputs / f"{len(running)}.txt"
        names = {"MODULE": module, "ARGUMENTS": arguments, "OUTPUT": str(output), "ENVIRONMENT": environment, "FOLDER": str(folder)}
        process = SERVER.Process(target=runpy.run_path, args=(str(ROOT / "tests" / "launch.py"), names))
        process.start()
        running.append(Command(process, output))
        return running[-1]

    yield begin
    for command in running:
        if command.process.is_alive():
            command.process.kill()
            command.process.join()
