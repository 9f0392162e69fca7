"""Shared by all tests: what to parametrise over is discovered, so that a new path, solver or prediction is tested unedited."""

import ctypes
import gc
import importlib.util
import os
import resource
import sys
import tempfile

import jax
import numpy as np
import pytest

from samplers import solvers
from sde_lib import PLANE, SDE, VE, VP, GaussianMixture, Linear

pytest_plugins = ["commands"]
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# the peers come with the extra `peers`, which `make slow` installs
OPERATORS = (("", "align"), ("", "pool"), ("_", "align_backward"), ("_", "pool_backward"))  # of torchvision's roi_ and ps_roi_
PEERS = {"diffusers": ["samplers/test_peers.py", "models/test_network_peers.py"], "pytorch_fid": ["experiments/test_inception_peers.py"]}
collect_ignore = [file for package, files in PEERS.items() if not importlib.util.find_spec(package) for file in files]
if not collect_ignore:
    import torch

    try:
        import torchvision
    except RuntimeError:  # its compiled operators are for another PyTorch, and no peer uses them: their names are enough
        library = torch.library.Library("torchvision", "DEF")
        of_boxes = ("nms", "qnms", "deform_conv2d", "_deform_conv2d_backward", "qroi_align")
        for operator in (*of_boxes, *(f"{under}{kind}_{end}" for kind in ("roi", "ps_roi") for under, end in OPERATORS)):
            library.define(f"{operator}(Tensor a) -> Tensor")
        import torchvision  # noqa: F401
PATHS = [cls() for cls in SDE.__subclasses__()]
MEMORY_LIMIT = 2.5  # GB of each worker in the fast suite
PEAKS: dict[str, float] = {}  # of the workers of pytest-xdist, by name


def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true", help="inject every fault of tests/faults as often as its table says")


def peak_memory() -> float:
    """The largest resident memory that this process has had, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def pytest_sessionfinish(session):
    """A worker of pytest-xdist reports its peak memory to the process that started it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_memory"] = peak_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Keep what a worker of pytest-xdist has reported; a worker that crashed has not."""
    PEAKS[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_memory", float("nan"))


def pytest_terminal_summary(terminalreporter):
    """Print the peak memory of each worker, and the counts of injected faults."""
    peaks = PEAKS or {"this process": peak_memory()}
    listed = ", ".join(f"{name} {size:.2f} GB" for name, size in sorted(peaks.items()))
    terminalreporter.write_line(f"peak memory: {listed} (expected below {MEMORY_LIMIT} GB each)")
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", []) if getattr(report, "when", "") == "call" else []:
                if name == "fault":
                    terminalreporter.write_line(value)


def pytest_configure(config):
    """The suite compiles far more than it runs: LLVM without optimization, and one compilation cache for all workers and commands of this run."""
    os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}"
    if not hasattr(config, "workerinput"):
        config.compilation_cache = tempfile.TemporaryDirectory()
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compilation_cache.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def pytest_collection_modifyitems(items):
    """The longest test begins first, or one worker waits for it at the end."""
    items.sort(key=lambda item: item.name != "test_readme_commands_work_as_printed")


def pytest_generate_tests(metafunc):
    own = [name for mark in metafunc.definition.iter_markers("parametrize") for name in mark.args[0].replace(" ", "").split(",")]
    if "sde" in metafunc.fixturenames and "sde" not in own:
        few = next(metafunc.definition.iter_markers("few_paths"), None)
        slow = lambda sde: [pytest.mark.slow] * (few is not None and not isinstance(sde, (VP, VE, Linear)))
        metafunc.parametrize("sde", [pytest.param(sde, id=type(sde).__name__, marks=slow(sde)) for sde in PATHS])
    if "kind" in metafunc.fixturenames and "kind" not in own:
        metafunc.parametrize("kind", PLANE)
    if "solver_name" in metafunc.fixturenames:
        metafunc.parametrize("solver_name", solvers.SOLVERS)


@pytest.fixture(scope="module", autouse=True)
def free_compiled_programs():
    """After each module of tests JAX drops its compiled programs, which otherwise stay, and glibc returns their memory."""
    yield
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@pytest.fixture
def x64():
    """The test runs in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def mixture():
    """Three Gaussians in 2-D, two of them anisotropic and rotated."""
    angles = np.array([0.0, 0.5, 1.2])
    rotations = np.stack([np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles])
    means = np.array([[0.8, 0.0], [-0.5, 0.6], [0.0, -0.7]])
    return GaussianMixture(means, np.array([[0.2, 0.2], [0.3, 0.1], [0.1, 0.25]]), np.array([1.0, 2.0, 1.5]), rotations)


@pytest.fixture
def interior(sde):
    """Nine times from 0.01 T to 0.99 T."""
    return np.linspace(0.01, 0.99, 9) * sde.T
