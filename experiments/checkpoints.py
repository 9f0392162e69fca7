"""Checkpoints by orbax, each with a manifest of SHA-256 sums: a flipped bit loads silently otherwise."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.state import TrainState

MANIFEST = "manifest.json"


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder`, by relative path."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class Checkpoints:
    """The checkpoints of a run, in `folder`/<step>/. Use as a context manager.

    keep: how many of the newest are kept, 0 for all; None opens the folder for reading only, beside a run that may be writing to it.
    A save counts once its manifest is there. One that was cut short is not seen, and is removed when the folder is next opened for writing;
    older checkpoints are removed only once a newer one is complete.
    """

    def __init__(self, folder: str | Path, keep: int | None):
        self.folder = Path(folder).resolve()
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True)
        self.keep = keep
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        if keep is not None:
            for step in set(self.manager.all_steps()) - set(self.steps()):
                self.manager.delete(step)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.manager.close()

    def save(self, state: TrainState) -> None:
        """Write `state` and its manifest, and return when both are on disk. A step that is there already is left alone."""
        step = int(state.step)
        if step in self.steps():
            return
        self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(jax.device_get(state))), force=True)
        self.manager.wait_until_finished()
        folder = self.folder / str(step)
        temporary = folder / (MANIFEST + ".tmp")
        temporary.write_text(json.dumps(_sums(folder), indent=1))
        temporary.rename(folder / MANIFEST)
        for old in self.steps()[: -self.keep] if self.keep else []:
            self.manager.delete(old)

    def steps(self) -> list[int]:
        """The steps saved, in order."""
        return sorted(step for step in self.manager.all_steps() if (self.folder / str(step) / MANIFEST).exists())

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state of `step` (default: the newest), shaped as `like`.

        Raises FileNotFoundError if there is none, ValueError naming the file if one is missing or altered, or if the shapes disagree.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self.folder}: train first")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.folder}: there are {', '.join(map(str, steps))}")
        step = steps[-1] if step is None else step
        self._verify(step, [s for s in steps if s != step])
        abstract = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), like)
        try:
            restored = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"checkpoint {self.folder / str(step)} does not fit this config: {reason}") from None
        for (path, a), b in zip(jax.tree.leaves_with_path(abstract), jax.tree.leaves(restored.state)):
            if a.shape != b.shape:
                name = jax.tree_util.keystr(path)
                raise ValueError(f"checkpoint {self.folder / str(step)} does not fit this config: {name} is {b.shape}, expected {a.shape}")
        return restored.state

    def _verify(self, step: int, others: list[int]) -> None:
        folder = self.folder / str(step)
        hint = f"; other checkpoints: {', '.join(map(str, others))} (move {folder} away to use the newest)" if others else ""
        try:
            expected = json.loads((folder / MANIFEST).read_text())
        except ValueError:
            raise ValueError(f"checkpoint file {folder / MANIFEST} is corrupt{hint}") from None
        found = _sums(folder)
        for name, digest in expected.items():
            if found.get(name) != digest:
                what = "is missing" if name not in found else "is corrupt (its SHA-256 differs)"
                raise ValueError(f"checkpoint file {folder / name} {what}{hint}")
