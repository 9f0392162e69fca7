"""Checkpoints by orbax, written while training goes on, each with a manifest of SHA-256 sums: a flipped bit loads silently otherwise."""

import fcntl
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from experiments import hosts
from experiments.kept import sha256, write_text
from experiments.state import TrainState
from experiments.untrusted import read_json

MANIFEST, STATE = "manifest.json", "state"
TEMPORARY = "*.orbax-checkpoint-tmp*"
EARLIER = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # what manifests had besides, before they had a sum of their own
LAST = "last_checkpoint"  # beside the folder: that there were checkpoints, should they be gone


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the state in a checkpoint, by relative path; the others are orbax's notes, of which nothing is read."""
    return {str(f.relative_to(folder)): sha256(f) for f in sorted((folder / STATE).rglob("*")) if f.is_file()}


def _as(a):
    """What orbax restores an array as: on the host, or in parts on all devices, where it is so in `like`."""
    sharding = getattr(a, "sharding", None)
    divided = sharding is not None and not sharding.is_fully_replicated
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) if divided else np.empty(a.shape, a.dtype)


def _copy(a):
    """On the host, or, where other processes have parts of it, in place."""
    return a.copy() if isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated) else np.array(a)


def _parts(state: TrainState) -> dict:
    """What a state has, by name: a part that is None is not in its checkpoint, nor in those that are older than the part."""
    return {name: part for name, part in vars(state).items() if part is not None}


def own_sum(found: dict[str, str]) -> str:
    """The sum of a manifest itself."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


class Checkpoints:
    """The checkpoints of a run, in `folder`/<step>/. Use as a context manager.

    keep: how many of the newest are kept, 0 for all; None opens the folder for reading only, beside a run that may be writing to it. every: those of
    the multiples of so many steps are kept besides, 0 for none.

    A folder named by a number is whole: orbax writes to a temporary one, the manifest is the last file in it, and then it is renamed. What a save
    that was cut short has left is removed when the folder is next opened for writing.
    """

    def __init__(self, folder: str | Path, keep: int | None, every: int = 0):
        self.folder, self.manager, self.needed, self.noted = Path(folder).resolve(), None, 0, None
        if keep is not None:
            if hosts.writes():
                self._lock()
                self._remove_temporary()
            hosts.barrier("temporary files are removed")
            kept = [LatestN(keep or None), *([EveryNSteps(every)] if every else [])]
            options = ocp.CheckpointManagerOptions(
                create=True,
                lightweight_initialize=True,
                preservation_policy=AnyPreservationPolicy(kept),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            )
            self.manager = ocp.CheckpointManager(self.folder, options=options)
            self._note()

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if self.manager is None:
            return
        try:
            self.manager.close()
            self._note()
        except Exception as failure:
            if error is None:
                raise self._failed(failure) from failure
        finally:
            if hosts.writes():
                self.lock.close()

    def _lock(self) -> None:
        """Raise ValueError if another process writes here; the kernel frees the lock of one that dies."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folder.parent / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.folder.parent} is being trained by another process: wait for its end, or name another --workdir") from None
        except OSError:
            pass  # a file system without locks

    def _write_manifest(self) -> None:
        """In orbax's thread, once all files of a checkpoint are there, before it gets its name."""
        if not hosts.writes():
            return
        (temporary,) = self.folder.glob(TEMPORARY)
        found = sums(temporary)
        write_text(temporary / MANIFEST, json.dumps({**found, MANIFEST: own_sum(found)}, indent=1))

    def _note(self) -> None:
        """Write beside the folder which is the newest checkpoint."""
        if hosts.writes() and (steps := self.steps()) and steps[-1] != self.noted:
            write_text(self.folder.parent / LAST, str(steps[-1]))
            self.noted = steps[-1]

    def save(self, state: TrainState) -> None:
        """Begin to write `state`, of which a copy is taken; a step that is there already is left alone.

        Waits for the save before. Raises OSError if that failed, or if there is not enough room for this one.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps():
            return
        self.folder.mkdir(exist_ok=True)  # it may have been taken away
        needed, free = sum(a.nbytes for a in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
        self.needed = needed
        if needed > free:
            raise self._failed(OSError(f"a checkpoint of step {step} needs {_mib(needed)}"))
        copy = jax.tree.map(_copy, state)  # on a CPU the arrays of a donated state would be written over
        try:
            self.manager.save(step, args=ocp.args.Composite(**{STATE: ocp.args.StandardSave(_parts(copy))}), force=True)
        except Exception as failure:
            raise self._failed(failure) from failure

    def _remove_temporary(self) -> None:
        """What a save that was cut short has left."""
        for temporary in self.folder.glob(TEMPORARY):
            shutil.rmtree(temporary, ignore_errors=True)

    def check(self) -> None:
        """Raise OSError if a save has failed meanwhile; note one that has ended well."""
        try:
            self.manager.check_for_errors()
        except Exception as failure:
            raise self._failed(failure) from failure
        self._note()

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole. Raises OSError if it failed."""
        try:
            self.manager.wait_until_finished()
        except Exception as failure:
            raise self._failed(failure) from failure
        self._note()

    def _failed(self, failure: Exception) -> OSError:
        """The error that says what is needed, what is free, and what there is; what was written of the failed checkpoint is removed."""
        if hosts.writes():
            self._remove_temporary()
        reason, free = " ".join(str(failure).split())[:300], shutil.disk_usage(self.folder).free
        needed = f" and {_mib(self.needed)} are needed" if self.needed else ""
        newest = f"the newest checkpoint is that of step {steps[-1]}" if (steps := self.steps()) else "there is no checkpoint yet"
        mend = "Make room: the same command" if self.needed > free or "space" in reason.lower() else "The same command"
        return OSError(f"saving to {self.folder} failed ({reason}): {_mib(free)} are free there{needed}; {newest}. {mend} goes on from there")

    def steps(self) -> list[int]:
        """The steps saved, in order."""
        return sorted(int(f.name) for f in self.folder.iterdir() if f.name.isdigit() and f.is_dir()) if self.folder.is_dir() else []

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """As `_restore`; of a run that trains meanwhile, and removes what is being read, what is newest then."""
        while True:
            before = self.steps()
            try:
                return self._restore(like, step)
            except Exception:
                if self.manager is not None or self.steps() == before:
                    raise

    def _restore(self, like: TrainState, step: int | None) -> TrainState:
        """The state of `step`, shaped as `like`; by default of the newest that is whole, saying of newer ones what is wrong with them. Where the
        folder is written to, these are moved to damaged_checkpoints/ beside it.

        Raises FileNotFoundError if there is none, ValueError naming the file or the array if one is missing, altered or not as in `like`.
        """
        steps = self.steps()
        if not steps:
            self.expected()
            raise FileNotFoundError(f"no checkpoint in {self.folder}: train first")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.folder}: there are {', '.join(map(str, steps))}")
        damaged = []
        for chosen in [step] if step is not None else reversed(steps):
            damage = self.damage(chosen)
            if damage is None:
                break
            damaged.append((chosen, damage))
        else:
            others = f"; other checkpoints: {', '.join(str(s) for s in steps if s != step)}" if step is not None and len(steps) > 1 else ""
            raise ValueError("; ".join(damage for _, damage in damaged) + (others or "; no other checkpoint is whole"))
        if damaged and self.manager is not None:
            hosts.barrier("all have seen what is damaged")
        for bad, damage in damaged:
            print(f"{damage}: falling back to the checkpoint of step {chosen}", flush=True)
            if self.manager is not None and hosts.writes():
                aside = self.folder.parent / "damaged_checkpoints" / str(bad)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self.folder / str(bad)).rename(aside)
        if damaged and self.manager is not None:
            hosts.barrier("damaged checkpoints are moved")
            self.manager.reload()
        return self._read(chosen, like)

    def expected(self) -> None:
        """Raise FileNotFoundError if there is no checkpoint although there was one: never go on with fresh weights."""
        last = self.folder.parent / LAST
        if last.exists() and not self.steps():
            raise FileNotFoundError(
                f"no checkpoint in {self.folder}, but {last} says that there was one of step {last.read_text()}: put it back, "
                "or name another --workdir to start anew"
            )

    def _read(self, step: int, like: TrainState) -> TrainState:
        place = self.folder / str(step) / STATE
        named = lambda tree: {jax.tree_util.keystr(path, simple=True, separator="/"): a for path, a in jax.tree.leaves_with_path(tree)}
        show = lambda a: f"{np.dtype(a.dtype)} {tuple(a.shape)}" if a is not None else "not there"
        with ocp.StandardCheckpointer() as reader:
            saved, ours = named(reader.metadata(place).item_metadata.tree), named(like)
            for name in [*ours, *(saved.keys() - ours.keys())]:  # before anything is read
                theirs, own = saved.get(name), ours.get(name)
                if show(theirs) != show(own):
                    raise ValueError(f"checkpoint {place.parent} does not fit this config: {name} is {show(theirs)}, expected {show(own)}")
                if any(chunk > max(size, 1) for chunk, size in zip(theirs.storage.chunk_shape, theirs.shape)):
                    raise ValueError(f"checkpoint {place.parent} has {name} {theirs.shape} in chunks of {theirs.storage.chunk_shape}: it is not ours")
            return like.replace(**reader.restore(place, jax.tree.map(_as, _parts(like))))

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files, every byte of which is read."""
        folder = self.folder / str(step)
        try:
            manifest = read_json(folder / MANIFEST)
            expected = {name: digest for name, digest in manifest.items() if name.startswith(STATE)}
            sound = manifest.get(MANIFEST) == own_sum(expected) or manifest.keys() - expected.keys() == EARLIER
        except FileNotFoundError:
            return f"checkpoint file {folder / MANIFEST} is missing"
        except (ValueError, AttributeError):
            sound = False
        if not sound:
            return f"checkpoint file {folder / MANIFEST} is corrupt"
        found = sums(folder)
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                wrong = "is missing" if name not in found else "is corrupt (its SHA-256 differs)" if name in expected else "is not in the manifest"
                return f"checkpoint file {folder / name} {wrong}"
        return None
