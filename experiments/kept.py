"""What long commands keep while they compute, so that they go on where they were interrupted; files written at once; and results that no other
settings may write over."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


SETTINGS = "settings"  # under which the .json of a result has what it was made with


@dataclass(frozen=True)
class Place:
    """Where the results of some settings are: in files whose names begin with `stem`.

    STEM.json notes the settings. suffix: the end of stem by which it differs from the stem that was
    asked for, "" or "-2", "-3", ..."""

    stem: Path
    settings: dict
    suffix: str = ""

    def file(self, ending: str) -> Path:
        """STEM<ending>."""
        return Path(f"{self.stem}{ending}")

    def write(self, said: dict) -> Path:
        """Write STEM.json: what is said of the results, and the settings."""
        write_text(self.file(".json"), json.dumps({**said, SETTINGS: self.settings}, indent=1, allow_nan=False))
        return self.file(".json")


def noted(stem: Path) -> dict | None:
    """The settings of the result at `stem`.

    None if nothing is there, {} if it does not say (another program or an older version wrote it)."""
    files = [Path(f"{stem}{ending}") for ending in (".json", ".npz", ".html")]
    if not any(file.exists() for file in files):
        return None
    try:
        found = read_json(files[0])[SETTINGS]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def different(ours: dict, theirs: dict) -> str:
    """In which settings two results differ, in a few words."""
    if not theirs:
        return "settings that it does not say"
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    few = ", ".join(f"{name} {theirs.get(name)!r:.40}, not {ours.get(name)!r:.40}" for name in names[:3])
    return few + ", ..." * (len(names) > 3)


def claim(stem: Path, settings: dict) -> Place:
    """A place for the results of these settings, for which no result of other settings is lost.

    It is `stem`, or the first of stem-2, stem-3, ... at which there is nothing, or a result of the
    very same settings. They are noted there, so that no other command takes it."""
    settings, k = json.loads(json.dumps(settings)), 1
    while (theirs := noted(candidate := Path(f"{stem}-{k}") if k > 1 else stem)) is not None and (theirs != settings or not theirs):
        print(f"{candidate} is a result of other settings ({different(settings, theirs)}), and stays", flush=True)
        k += 1
    place = Place(candidate, settings, f"-{k}" if k > 1 else "")
    if theirs is None:
        candidate.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(place.file(".json"), "x") as file:
                json.dump({SETTINGS: settings}, file)
        except FileExistsError:  # another command was faster
            return claim(stem, settings)
    return place


def reserve(stem: Path, settings: dict, flag: str = "") -> Place:
    """The place `stem` itself, of a result whose name its readers rely on.

    flag: the one that chose the name, if any. Raises ValueError if a result of other settings is
    there."""
    settings = json.loads(json.dumps(settings))
    theirs = noted(stem)
    if theirs is not None and (theirs != settings or not theirs):
        mend = f"name another {flag}, or remove it" if flag else "remove it to replace it"
        raise ValueError(f"{stem} is a result of other settings ({different(settings, theirs)}): {mend}")
    return Place(stem, settings)


def short(value) -> str:
    """A value in the name of a file; of a path its last part."""
    if isinstance(value, list | tuple):
        return "-".join(map(short, value))
    text = f"{value:g}" if isinstance(value, float) else Path(str(value)).name
    return re.sub(r"[^\w.+-]+", "", text, flags=re.ASCII)


def name_of(parts: list[str], options: dict) -> str:
    """The name of a result: its parts, and the names and values of options that are not at their
    defaults; cut where no file may have so long a name."""
    return "_".join([*parts, *(f"{name}{short(value)}" for name, value in options.items())])[:200]


def check_finite(values, what: str, where: str, start: int = 0) -> None:
    """Raise ValueError if some of the values [n, ...] are not finite.

    start: the number of the first example. what, where: words for the values and their origin."""
    values = np.asarray(values)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(bad):
        raise ValueError(f"{len(bad)} of {start + len(values)} {what} are not finite at {where}; the first is number {start + bad[0]}")


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
        self.stem, self.folder, self.parts, self.settings = stem, None, [], {}

    def open(self, settings: dict) -> None:
        """Go on with what is kept of the same settings."""
        self.parts, self.settings = [], settings
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
