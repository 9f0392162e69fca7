"""Between a network, which knows no SDE, and a Denoiser, which knows no network: scaling of the input, time as the network is told it."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import models
import sde_lib
from experiments.cli import build
from sde_lib import SDE, Denoiser
from sde_lib.numerics import expand


def by_time(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """t / T."""
    return t / sde.T


def by_log_snr(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """(10 - log-SNR) / 20, the log-SNR clipped to [-10, 10]: even resolution down to the smallest noise."""
    return (10.0 - jnp.clip(sde.log_snr(t), -10.0, 10.0)) / 20.0


CLOCKS = {"time": by_time, "log_snr": by_log_snr}


@dataclass(frozen=True)
class Network:
    """A module on a path: (params, x [B, ...], t [B], label [B]) -> the prediction F of `kind`. Hashable, hence static under jit.

    The module sees x / sqrt(alpha^2 sigma_data^2 + sigma^2), of unit variance, and the time by `clock` (a name in `CLOCKS`), about 0 to 1.
    """

    module: nn.Module
    sde: SDE
    kind: str
    sigma_data: float
    clock: str

    def __call__(self, params, x: Float[Array, "b ..."], t: Float[Array, " b"], label=None, example=None, dropout_key=None):
        """F [B, ...]. example: [B] global indices and dropout_key, in training only."""
        variance = (self.sde.alpha(t) * self.sigma_data) ** 2 + self.sde.sigma(t) ** 2
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return self.module.apply({"params": params}, x / expand(jnp.sqrt(variance), x), CLOCKS[self.clock](self.sde, t), label, example, rngs=rngs)

    def init(self, key, shape: tuple[int, ...]):
        """Parameters for examples of `shape`."""
        x, t = jnp.zeros((1, *shape)), jnp.ones(1)
        return self.module.init(key, x, t, None)["params"]

    def denoiser(self, params, label: Int[Array, " b"] | None = None) -> Denoiser:
        """The Denoiser of these parameters, conditioned on labels [B] if given."""
        return Denoiser(jax.tree_util.Partial(self, params), self.sde, self.kind, self.sigma_data, label)


def from_config(config: ConfigDict, num_classes: int) -> Network:
    """The network of `config.sde`, `config.model` and `config.objective`, for data of `num_classes`.

    Raises ValueError for unknown names and options.
    """
    module = build(models, config.model, "model", models.__all__)
    if module.num_classes not in (0, num_classes):
        raise ValueError(f"config.model.num_classes = {module.num_classes}: the data set has {num_classes} classes (0 ignores labels)")
    sde = build(sde_lib, config.sde, "sde", [cls.__name__ for cls in SDE.__subclasses__()])
    objective = config.objective
    if objective.kind not in sde_lib.PLANE:
        raise ValueError(f"config.objective.kind = '{objective.kind}': expected one of {', '.join(sde_lib.PLANE)}")
    if objective.clock not in CLOCKS:
        raise ValueError(f"config.objective.clock = '{objective.clock}': expected one of {', '.join(CLOCKS)}")
    return Network(module, sde, objective.kind, objective.sigma_data, objective.clock)
