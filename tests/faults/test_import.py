"""Importing a command must start no backend of JAX (`jax.distributed` comes first, and the tests fork of a process that has imported), and choose
none of matplotlib: a notebook that imports this project keeps its own."""

import pkgutil
import subprocess
import sys

from experiments import tables

MODULES = ("train", "sample", "likelihood", "evaluate", "export", "fit", "autoencode", "dequantization", "records", "statistics", "tables.__main__")
MODULES += ("doctor", "profile", "benchmarks.scaling", "report", "latent", "inverse", "plots")
MODULES += tuple(f"tables.{module.name}" for module in pkgutil.iter_modules(tables.__path__))
PROGRAM = """
import importlib, sys
import matplotlib
chosen = dict.__getitem__(matplotlib.rcParams, "backend")  # as it is, where reading it would choose one
[importlib.import_module(f"experiments.{module}") for module in sys.argv[1:]]
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized(), dict.__getitem__(matplotlib.rcParams, "backend") is chosen, "matplotlib.pyplot" in sys.modules)
"""


def test_importing_starts_no_backend():
    done = subprocess.run([sys.executable, "-c", PROGRAM, *MODULES], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "False"], (done.stdout, done.stderr)
