"""What is here and what is missing: python -m experiments.doctor [--workdir=runs/digits]

Python and packages against what setup.py asks for, devices and memory, disk, data sets at hand, and the state of a run. What could be better is
marked with ! and what is required and missing with !!, each followed by what mends it; the exit code is 1 if something is marked so. Nothing but the
standard library is imported until it is known what is there.
"""

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = "sde-generative"
LAUNCHERS = ("SLURM_NTASKS", "JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES", "OMPI_COMM_WORLD_SIZE")  # what they set
RESERVE = 3  # checkpoints that should fit on the disk: those that are kept, and the next


@dataclass(frozen=True)
class Finding:
    """One line. mend: what to do about it, "" if nothing. required: whether nothing works until that is done."""

    topic: str
    said: str
    mend: str = ""
    required: bool = False

    def __str__(self) -> str:
        mark = "  " if not self.mend else "!!" if self.required else " !"
        return f"{mark} {self.topic:<12} {self.said}" + (f"\n   {'':<12} -> {self.mend}" if self.mend else "")


def size(n: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit in ("B", "KiB") else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def asked() -> tuple[str, list[str]]:
    """The Python and the packages that setup.py asks for, or where there is none the installed project."""
    file = Path(__file__).resolve().parent.parent / "setup.py"
    if not file.exists():
        return importlib.metadata.metadata(PROJECT)["Requires-Python"], importlib.metadata.requires(PROJECT)
    call = next(node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup")
    values = {keyword.arg: keyword.value for keyword in call.keywords}
    return ast.literal_eval(values["python_requires"]), ast.literal_eval(values["install_requires"])


def packages() -> Iterator[Finding]:
    """Python and each package that is asked for, with its version; those of the extras are left out."""
    python = ".".join(map(str, sys.version_info[:3]))
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        yield Finding("packages", f"packaging is missing in {sys.executable}", "pip install --editable . (in the folder of setup.py)", True)
        return
    wanted, requirements = asked()
    old = python not in SpecifierSet(wanted)
    mend = f"install Python {wanted}, and this project in it" if old else ""
    yield Finding("python", f"{python} (required: {wanted}), {sys.executable}", mend, old)
    fine = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        mend = f"pip install --upgrade '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", f"{requirement.name} is missing (required: {requirement.specifier})", mend, True)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding("packages", f"{requirement.name} {version} is too old (required: {requirement.specifier})", mend, True)
        else:
            fine.append(f"{requirement.name} {version} ({requirement.specifier})")
    for i in range(0, len(fine), 5):
        yield Finding("packages" if i == 0 else "", ", ".join(fine[i : i + 5]))


def accelerators() -> str:
    """The accelerators that the operating system knows of, whether JAX uses them or not; "" for none."""
    if shutil.which("nvidia-smi"):
        try:
            ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            said = subprocess.run(ask, capture_output=True, text=True, timeout=20)
            if said.returncode == 0 and said.stdout.strip():
                return "; ".join(f"NVIDIA {line} (driver)" for line in said.stdout.strip().splitlines())
        except (OSError, subprocess.TimeoutExpired):
            pass
    for pattern, name in (("nvidia[0-9]*", "NVIDIA GPU"), ("accel[0-9]*", "TPU")):
        if found := sorted(Path("/dev").glob(pattern)):
            return f"{len(found)} x {name}"
    return ""


def devices() -> Iterator[Finding]:
    """What JAX computes on, beside what there is."""
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # a backend that cannot start raises anything
        yield Finding(
            "devices", f"JAX cannot start: {' '.join(str(error).split())[:200]}", "unset JAX_PLATFORMS, or install JAX for this machine", True
        )
        return
    backend, there = jax.default_backend(), accelerators()
    said = f"{backend}: {len(found)} x {found[0].device_kind}, of which {jax.local_device_count()} here; process {jax.process_index()} of "
    said += f"{jax.process_count()}"
    mend = ""
    if backend == "cpu" and there:
        said, extra = f"{said}; beside {there}, which JAX does not use", "tpu" if "TPU" in there else "cuda"
        asked = os.environ.get("JAX_PLATFORMS")
        mend = f"unset JAX_PLATFORMS (it is {asked})" if asked else f"pip install --editable '.[{extra}]'"
    yield Finding("devices", said, mend)
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            yield Finding("", f"{device}: {size(stats['bytes_in_use'])} of {size(stats['bytes_limit'])} in use")
    if waiting := [name for name in LAUNCHERS if name in os.environ]:
        yield Finding("", "launched with " + ", ".join(f"{name}={os.environ[name]}" for name in waiting))
    cache = jax.config.jax_compilation_cache_dir
    mend = "" if cache else "export JAX_COMPILATION_CACHE_DIR=FOLDER, for a run that is resumed often"
    yield Finding("compilation", f"kept in {cache}" if cache else "not kept: every start compiles anew", mend)


def host() -> Iterator[Finding]:
    """Cores and memory, of the machine and of the container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"{cores} cores; memory {size(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))}"
    try:
        free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
        said += f", {size(1024 * int(free.split()[1]))} available"
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        said += f", limited to {size(int(limit))}" if limit.isdigit() else ""
    except (OSError, StopIteration):
        pass  # not Linux, or without limits
    yield Finding("host", said)


def place(topic: str, folder: Path, need: int = 0) -> Finding:
    """Whether `folder` can be written to, or made, and has `need` bytes free."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    said = f"{folder}: {size(free)} free"
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding(topic, f"{said}, but {there} cannot be written to", f"make {there} writable, or name another folder", True)
    short = f"free {size(need - free)} there, or name another folder" if free < need else ""
    return Finding(topic, f"{said}, {size(need)} needed" if need else said, short, bool(short))


def data_sets() -> Iterator[Finding]:
    """The data sets that need no download."""
    from experiments import archives, sources

    folders = (archives.FASHION_FOLDER, archives.FASHION_CACHE)
    fashion = any(all((f / name).exists() or (f / f"{name}.gz").exists() for name in archives.FASHION_SHA256) for f in folders)
    here = ["digits", "the toy sets"] + ["fashion_mnist"] * fashion
    here += [name.partition("-binary")[0].replace("-", "") for name in archives.CIFAR_MD5 if (sources.CACHE / name).exists()]
    yield Finding("data", f"at hand: {', '.join(here)}")
    yield place("cache", sources.CACHE)


def run(workdir: Path) -> Iterator[Finding]:
    """A run: its checkpoints, by their checksums, its last logged step, and whether the next checkpoints fit on the disk."""
    from experiments.checkpoints import Checkpoints

    if not (workdir / "config.json").exists():
        yield place("workdir", workdir)
        yield Finding("", "no run is there yet")
        return
    try:
        json.loads((workdir / "config.json").read_text())
    except ValueError as error:
        yield Finding("workdir", f"config.json is not readable JSON ({error})", "put back a copy of it, or train in another --workdir", True)
    checkpoints = Checkpoints(workdir / "checkpoints", None)
    steps = checkpoints.steps()
    bytes_of = lambda step: sum(f.stat().st_size for f in (workdir / "checkpoints" / str(step)).rglob("*") if f.is_file())
    each = bytes_of(steps[-1]) if steps else 0
    yield place("workdir", workdir, RESERVE * each)
    yield Finding("", f"checkpoints {', '.join(map(str, steps))}, the newest of {size(each)}" if steps else "no checkpoint yet")
    for step in steps:
        if damage := checkpoints.damage(step):
            yield Finding("", damage, f"train again: it falls back to the newest whole one, and moves {step} to damaged_checkpoints/")
    logged = 0
    try:
        for line in (workdir / "log.jsonl").read_text().splitlines():
            try:
                logged = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                continue  # a kill left half a line
    except OSError:
        pass
    lost = f"; a resumed run begins {logged - steps[-1]} steps before it" if steps and logged > steps[-1] else ""
    yield Finding("", f"last logged step {logged}{lost}")


def careful(topic: str, findings: Iterator[Finding], mend: str) -> Iterator[Finding]:
    """The findings, and what ended them early as one more: a broken installation raises anything."""
    try:
        yield from findings
    except Exception as error:
        yield Finding(topic, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", mend, True)


def examine(workdir: str = "") -> list[Finding]:
    """All findings, those that need packages only if the packages are there."""
    findings = [*packages(), *host()]
    if not any(finding.required for finding in findings):
        findings += careful("devices", devices(), "unset JAX_PLATFORMS, or install JAX for this machine")
        findings += careful("data", data_sets(), "pip install --editable . (in the folder of setup.py)")
        findings += careful("workdir", run(Path(workdir or "runs")), "make it readable, or name another --workdir")
    return [*findings, place("temporary", Path(tempfile.gettempdir()))]


def main(arguments: list[str]) -> int:
    unknown = [a for a in arguments if not a.startswith(("--workdir=", "-workdir="))]
    if unknown:
        if {"--help", "-help", "-h"} & set(unknown):
            print(__doc__)
            return 0
        print(f"error: unexpected argument '{unknown[0]}': expected --workdir=...", file=sys.stderr)
        return 1
    findings = examine(arguments[-1].partition("=")[2] if arguments else "")
    print("\n".join(map(str, findings)))
    missing = sum(finding.required for finding in findings)
    print(f"required and missing: {missing or 'nothing'}")
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
