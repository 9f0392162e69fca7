"""Importing a command must start no backend: `jax.distributed` comes first, and the tests fork of a process that has imported."""

import subprocess
import sys

MODULES = ("train", "sample", "likelihood", "evaluate", "export", "fit", "autoencode", "dequantization", "records", "statistics", "tables.__main__")
MODULES += ("doctor", "profile", "benchmarks.scaling")
PROGRAM = "import importlib, sys; [importlib.import_module(f'experiments.{m}') for m in sys.argv[1:]]; from jax._src import xla_bridge as x; "


def test_importing_starts_no_backend():
    done = subprocess.run([sys.executable, "-c", PROGRAM + "print(x.backends_are_initialized())", *MODULES], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
