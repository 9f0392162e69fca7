"""Weights in safetensors files beside an export.json with their SHA-256: what `experiments.export` writes and `runs.load_run` reads."""

import hashlib
import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


def file(folder: str | Path, weights: str) -> Path:
    """Of the weights "ema" or "raw" in an export."""
    return Path(folder) / f"{weights}.safetensors"


def save(params, path: Path) -> str:
    """Write a tree of arrays, by names such as Conv_0/kernel, at once; returns the SHA-256 of the file."""
    temporary = path.with_suffix(".tmp")
    save_file({name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}, temporary)
    temporary.rename(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(folder: str | Path, weights: str, like) -> tuple[dict, int]:
    """Parameters shaped as the pytree `like`, and their step. Raises ValueError if a file is damaged or does not fit."""
    path = file(folder, weights)
    try:
        said = json.loads((Path(folder) / "export.json").read_text())
        digest, step = said["sha256"][weights], int(said["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{Path(folder) / 'export.json'} is missing or damaged: export again") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{path} is corrupt (its SHA-256 differs from that in export.json): export again")
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}): export again") from None
    expected = {name: leaf.shape for name, leaf in flatten_dict(like, sep="/").items()}
    for name in sorted(expected.keys() | arrays.keys()):
        if name not in arrays or arrays[name].shape != expected.get(name):
            found = arrays[name].shape if name in arrays else "missing"
            raise ValueError(f"{path} does not fit its config.json: {name} is {found}, expected {expected.get(name, 'none')}")
    return unflatten_dict(arrays, sep="/"), step
