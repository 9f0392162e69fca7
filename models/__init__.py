"""Networks only, in flax linen: functions of (x, t) with parameters, `NETWORKS`, the autoencoder and the classifier. They know no SDE; `t` is
whatever time they are told, about 0 to 1."""

import importlib
import inspect
import pkgutil

import flax.linen as nn

from models.autoencoder import KLAutoencoder
from models.classifier import NoisyClassifier
from models.dit import DiT, MMDiT
from models.edm2 import EDM2
from models.mlp import MLP, ResidualMLP
from models.unet import UNet

__all__ = ["NETWORKS", "EDM2", "DiT", "KLAutoencoder", "MLP", "MMDiT", "NoisyClassifier", "ResidualMLP", "UNet"]
_ARGUMENTS = ["self", "x", "t", "label", "example"]  # and further ones


def _predicts(cls) -> bool:
    """Whether it is a network on a path."""
    of_a_path = inspect.isclass(cls) and issubclass(cls, nn.Module) and cls is not NoisyClassifier
    return of_a_path and list(inspect.signature(cls.__call__).parameters)[: len(_ARGUMENTS)] == _ARGUMENTS


# by name: whatever module of a file of this folder is called with (x, t, label, example, ...)
NETWORKS = {
    name: cls
    for file in pkgutil.iter_modules(__path__)
    for name, cls in vars(importlib.import_module(f"{__name__}.{file.name}")).items()
    if _predicts(cls)
}
