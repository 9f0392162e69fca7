"""What long commands keep while they compute, so that they go on where they were interrupted; and files written at once."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from experiments.untrusted import Npz, read_json


def quiet(*_, **__) -> None:
    """In the place of `print`."""


def sha256(path: Path, name: str = "sha256") -> str:
    """The sum of a file, which need not fit in memory; or another sum that hashlib has."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


def savez(path: Path, **arrays) -> None:
    """`numpy.savez` at once: the file is there in full or not at all. The same arrays give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)
    temporary.rename(path)


def write_text(path: Path, text: str) -> None:
    """`Path.write_text` at once, likewise."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or it may be empty after a machine has lost its power
    temporary.rename(path)


DONE = "done.json"  # in the folder that is being written: of what, and how many rows of each split


def started(temporary: Path, of: list) -> dict:
    """What an interrupted command of the same has done in the folder `temporary`, or a new one where there is none."""
    try:
        if (done := read_json(temporary / DONE))["of"] == of:
            return done
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return {"of": of}


class Kept:
    """Results of examples 0, 1, ..., in a folder for each settings, STEM.<hash>.partial, with a file for each batch; stem None: in no file."""

    def __init__(self, stem: Path | None):
        self.stem, self.folder, self.parts = stem, None, []

    def open(self, settings: dict) -> None:
        """Go on with what is kept of the same settings."""
        self.parts = []
        if self.stem is None:
            return
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = Path(f"{self.stem}.{digest}.partial")
        while (path := self.folder / f"{len(self):08d}.npz").exists():
            try:
                part = dict(Npz(path))
                if not len({len(v) for v in part.values()} - {0}) == 1:
                    raise ValueError
            except (ValueError, TypeError):
                print(f"{path} is damaged: going on from example {len(self)}")
                return
            self.parts.append(part)

    def __len__(self) -> int:
        return sum(len(next(iter(part.values()))) for part in self.parts)

    def add(self, part: dict[str, np.ndarray]) -> None:
        """Keep what belongs to the next examples, arrays of one length."""
        if self.folder is not None:
            savez(self.folder / f"{len(self):08d}.npz", **part)
        self.parts.append(part)

    def complete(self, parts: Callable[[int], Iterator[dict]], n: int, what: str, progress=quiet) -> dict[str, np.ndarray]:
        """The results of the first n examples, of which those not kept yet are computed: parts(start) yields them from example `start`, batch by
        batch, each of which is kept at once. what: they are called, in what `progress` is told."""
        first, clock = len(self), time.perf_counter()
        if 0 < first < n:
            progress(f"{first} {what} were kept", flush=True)
        for part in parts(first) if first < n else ():
            self.add(part)
            done, spent = len(self), time.perf_counter() - clock
            progress(f"{done}/{n} {what}, {spent:.0f} s, ETA {spent * (n - done) / (done - first):.0f} s", flush=True)
        return self.results(n)

    def results(self, n: int) -> dict[str, np.ndarray]:
        """Of the first n examples."""
        return {name: np.concatenate([part[name] for part in self.parts])[:n] for name in self.parts[0]}

    def remove(self) -> None:
        """Nothing is to go on."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
