"""Small fitted things in one .npz file: arrays by name, and parameters by their flat names."""

from pathlib import Path

import jax
import numpy as np

from experiments.kept import savez
from experiments.untrusted import Npz


def save(path: Path, params=(), **arrays) -> None:
    """Write `arrays`, and the leaves of the pytree `params`, at once."""
    leaves = {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in jax.tree.leaves_with_path(params)}
    savez(path, **arrays, **leaves)


def load(path: Path, names: list[str], command: str) -> list[np.ndarray]:
    """Arrays of a file that `command` wrote. Raises ValueError naming it if the file is damaged, or is another."""
    try:
        file = Npz(path)
        return [file[name] for name in names]
    except (ValueError, KeyError):
        raise ValueError(f"{path} is damaged, of another version, or another file: make it again with {command}") from None


def load_params(path: Path, like, names: list[str], command: str):
    """Parameters shaped as the pytree `like`, and the arrays of `names`. Raises ValueError as `load`, and for other shapes."""
    keys, treedef = jax.tree.flatten_with_path(like)
    arrays = load(path, [*names, *(jax.tree_util.keystr(key) for key, _ in keys)], command)
    leaves = arrays[len(names) :]
    for leaf, (_, expected) in zip(leaves, keys):
        if leaf.shape != expected.shape:
            raise ValueError(f"{path} is of examples of another shape: make it again with {command}")
    return jax.tree.unflatten(treedef, leaves), arrays[: len(names)]
