"""Weights in safetensors files beside an export.json that says what they are and were trained on: what `experiments.export` writes and
`runs.load_run` reads."""

import hashlib
import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from experiments import data

SAID = "export.json"


def file(folder: str | Path, weights: str) -> Path:
    """Of the weights "ema" or "raw" in an export."""
    return Path(folder) / f"{weights}.safetensors"


def save(params, path: Path, metadata: dict[str, str] | None = None) -> str:
    """Write a tree of arrays, by names such as Conv_0/kernel, and metadata, at once; returns the SHA-256 of the file."""
    temporary = path.with_suffix(".tmp")
    save_file({name: np.ascontiguousarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}, temporary, metadata)
    temporary.rename(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(params) -> str:
    """SHA-256 of a tree of arrays, the same in a run and in its export."""
    arrays = sorted(flatten_dict(params, sep="/").items())
    return hashlib.sha256(b"".join(name.encode() + np.asarray(leaf).tobytes() for name, leaf in arrays)).hexdigest()


def _said(folder: str | Path, part):
    """part(what export.json says)."""
    try:
        return part(json.loads((Path(folder) / SAID).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{Path(folder) / SAID} is missing or damaged: export again") from None


def dataset(folder: str | Path, config: ConfigDict) -> data.Dataset:
    """The data that an export was trained on; where their files are not at hand, an empty set of the same kind, by which one can still sample."""
    try:
        return data.load(config)
    except FileNotFoundError:
        return _said(folder, lambda said: data.empty(config.name, said["dataset"]))


def read(folder: str | Path, weights: str, like) -> tuple[dict, int]:
    """Parameters shaped as the pytree `like`, and their step. Raises ValueError if a file is damaged or does not fit."""
    path = file(folder, weights)
    digest, step = _said(folder, lambda said: (said["sha256"][weights], int(said["step"])))
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{path} is missing or corrupt (its SHA-256 differs from that in {SAID}): export again")
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}): export again") from None
    check(arrays, flatten_dict(like, sep="/"), f"{path} does not fit its config.json")
    return unflatten_dict(arrays, sep="/"), step


def check(arrays: dict, like: dict, what: str) -> None:
    """Raise ValueError, `what` and the first name that differs, unless arrays by flat names have the shapes and types of `like`."""
    expected, found = ({name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (like, arrays))
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{what}: {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}")
