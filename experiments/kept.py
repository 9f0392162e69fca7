"""What long commands keep while they compute, so that they go on where they were interrupted; and files written at once."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np


def savez(path: Path, **arrays) -> None:
    """`numpy.savez` at once: the file is there in full or not at all. The same arrays give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)
    temporary.rename(path)


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
                with np.load(path, allow_pickle=False) as file:
                    part = dict(file)
                if not len({len(v) for v in part.values()} - {0}) == 1:
                    raise ValueError
            except (ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError):
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

    def results(self, n: int) -> dict[str, np.ndarray]:
        """Of the first n examples."""
        return {name: np.concatenate([part[name] for part in self.parts])[:n] for name in self.parts[0]}

    def remove(self) -> None:
        """Nothing is to go on."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
