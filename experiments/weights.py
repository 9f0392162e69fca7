"""Weights in safetensors files beside an export.json that says what they are and were trained on: what `experiments.export` writes and
`runs.load_run` reads."""

import hashlib
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from experiments import data
from experiments.kept import sha256
from experiments.untrusted import TENSORS_HEADER, read_json, tensors

SAID, NOTED = "export.json", "data.json"


def file(folder: str | Path, weights: str) -> Path:
    """Of the weights "ema" or "raw" in an export."""
    return Path(folder) / f"{weights}.safetensors"


def save(params, path: Path, metadata: dict[str, str] | None = None) -> str:
    """Write a tree of arrays, by names such as Conv_0/kernel, and metadata, at once; returns the SHA-256 of the file."""
    temporary = path.with_suffix(".tmp")
    save_file({name: np.asarray(leaf, order="C") for name, leaf in flatten_dict(params, sep="/").items()}, temporary, metadata)
    temporary.rename(path)
    return sha256(path)


def digest(params) -> str:
    """SHA-256 of a tree of arrays, the same in a run and in its export."""
    arrays = sorted(flatten_dict(params, sep="/").items())
    return hashlib.sha256(b"".join(name.encode() + np.asarray(leaf).tobytes() for name, leaf in arrays)).hexdigest()


def _said(folder: str | Path, part):
    """part(what export.json says)."""
    try:
        return part(read_json(Path(folder) / SAID))
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{Path(folder) / SAID} is missing or damaged: export again") from None


def facts(folder: str | Path) -> dict | None:
    """`Dataset.facts` of the data that a run or an export was trained on; None for a run that is older than them, and no run."""
    if (Path(folder) / SAID).exists():
        return _said(folder, lambda said: said["dataset"])
    noted = Path(folder) / NOTED
    try:
        return read_json(noted).get("facts") if noted.exists() else None
    except (ValueError, AttributeError):
        raise ValueError(f"{noted} is corrupt: delete it, if the data are those that the run was trained on") from None


def dataset(folder: str | Path, config: ConfigDict) -> data.Dataset:
    """The data that a run or an export was trained on, read as they were then. Where the files of an export are not at hand, an empty set of the
    same kind, by which one can still sample."""
    try:
        return data.load(config, facts(folder))
    except FileNotFoundError:
        if not (Path(folder) / SAID).exists():
            raise
        return _said(folder, lambda said: data.empty(config.name, said["dataset"]))


def read(folder: str | Path, weights: str, like) -> tuple[dict, int]:
    """Parameters shaped as the pytree `like`, and their step. Raises ValueError if a file is damaged or does not fit."""
    path = file(folder, weights)
    digest, step = _said(folder, lambda said: (said["sha256"][weights], int(said["step"])))
    expected = flatten_dict(like, sep="/")
    if not path.exists():
        raise ValueError(f"{path} is missing: export again")
    if path.stat().st_size > TENSORS_HEADER + sum(leaf.size * leaf.dtype.itemsize for leaf in expected.values()):
        raise ValueError(f"{path} does not fit its config.json: it has {path.stat().st_size} bytes, more than the network's parameters")
    if sha256(path) != digest:
        raise ValueError(f"{path} is corrupt (its SHA-256 differs from that in {SAID}): export again")
    arrays, _ = tensors(path)
    check(arrays, expected, f"{path} does not fit its config.json")
    return unflatten_dict(arrays, sep="/"), step


def check(arrays: dict, like: dict, what: str) -> None:
    """Raise ValueError, `what` and the first name that differs, unless arrays by flat names have the shapes and types of `like`."""
    expected, found = ({name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (like, arrays))
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{what}: {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}")
