"""Low-rank adapters (`models.lora`) in files: safetensors of names such as Conv_0/kernel/a, with rank, alpha, pattern, the SHA-256 of the base's
weights, and what its network predicts on which path, as metadata. `experiments.export` writes them; --lora=FILE[:WEIGHT] merges them into a run's
weights."""

import json
import math
from pathlib import Path

from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree
from ml_collections import ConfigDict

from experiments import weights
from experiments.kept import sha256
from experiments.network import Network
from experiments.untrusted import tensors
from models import lora

FILE = "lora.safetensors"


def of_network(network: Network) -> dict:
    """What the network of an adapter is, beside its shapes."""
    return {"sde": str(network.sde), "kind": network.kind, "sigma_data": network.sigma_data, "clock": network.clock}


def save(adapter: PyTree, options: ConfigDict, base: str, path: Path, network: Network) -> str:
    """Write an adapter of `config.lora` for the base weights of SHA-256 `base`; returns the SHA-256 of the file. One whose network is `final` makes a
    consistency function of the base, an acceleration (LCM-LoRA, 2311.05556)."""
    said = {"rank": options.rank, "alpha": options.alpha, "pattern": options.pattern, "base": base, "final": network.final}
    said |= of_network(network)
    return weights.save(adapter, path, {name: json.dumps(value) for name, value in said.items()})


def load(path: Path) -> tuple[PyTree, float]:
    """An adapter and its scale, alpha/rank. Raises FileNotFoundError, and ValueError if the file is none that `save` wrote."""
    if not path.is_file():
        raise FileNotFoundError(f"--lora={path}: no such file; expected a {FILE} that experiments.export wrote")
    try:
        adapter, metadata = tensors(path)
        said = {name: json.loads(value) for name, value in metadata.items()}
        return unflatten_dict(adapter, sep="/"), float(said["alpha"]) / int(said["rank"])
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(f"--lora={path} is no adapter ({type(error).__name__}: {error}): expected a {FILE} that experiments.export wrote") from None


def parts(flag: str) -> tuple[Path, float]:
    """File and weight of FILE or FILE:WEIGHT (1 by default). Raises ValueError for a weight that is not finite."""
    file, colon, number = flag.rpartition(":")
    try:
        file, weight = (file, float(number)) if colon else (flag, 1.0)
    except ValueError:
        file, weight = flag, 1.0  # a colon of the path
    if not math.isfinite(weight):
        raise ValueError(f"--lora={flag}: expected a finite weight")
    return Path(file), weight


def digest(flag: str) -> str:
    """The beginning of the SHA-256 of the file of `flag`."""
    return sha256(parts(flag)[0])[:8]


def jumps(flag: str) -> bool:
    """Whether the adapter of `flag` makes a consistency function of what it is merged into."""
    return tensors(parts(flag)[0])[1].get("final") == "true"


def check(flag: str, network: Network) -> None:
    """Raise ValueError, by name, for an adapter of `flag` that was trained on another path, or for another prediction, than `network`'s."""
    said = tensors(parts(flag)[0])[1]
    for name, value in of_network(network).items():
        if name in said and said[name] != json.dumps(value):
            raise ValueError(f"--lora={flag} was trained with {name} = {json.loads(said[name])}, this run with {value}: expected the same")


def merged(params: PyTree, flag: str) -> PyTree:
    """params with the adapter of `flag` (see `parts`). Raises ValueError, by name, for an adapter that does not fit."""
    file, weight = parts(flag)
    adapter, scale = load(file)
    try:
        return lora.merge(params, adapter, weight * scale)
    except ValueError as error:
        raise ValueError(f"--lora={flag}: {error}") from None
