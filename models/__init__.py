"""Networks only, in flax linen: functions of (x, t) with parameters, which `__all__` names, the autoencoder and the classifier. They know no SDE; `t`
is whatever time they are told, about 0 to 1."""

from models.autoencoder import KLAutoencoder as KLAutoencoder
from models.classifier import NoisyClassifier as NoisyClassifier
from models.dit import DiT, MMDiT
from models.mlp import MLP, ResidualMLP
from models.unet import UNet

__all__ = ["DiT", "MLP", "MMDiT", "ResidualMLP", "UNet"]
