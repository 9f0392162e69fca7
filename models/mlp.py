"""Multi-layer perceptrons for vectors (and for small images, which are flattened)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.dropout import Dropout
from models.embeddings import Conditioning, fourier_features


class MLP(nn.Module):
    """A plain MLP on [x, t]: `depth` hidden layers of `width`. torchcfm's is width 64, depth 3, selu.

    num_classes: as in `Conditioning`; a label is appended one-hot. frequencies: of `fourier_features` of x. second_time: t - s is added to the
    first layer by a matrix, 0 at first; told_omega: log omega likewise.
    x: [B, ...] -> [B, ...]; t: [B], about 0 to 1; label: [B]; s: [B], None for t; omega: [B], None for 1. The output layer starts at zero.
    """

    width: int = 256
    depth: int = 3
    activation: str = "silu"
    num_classes: int = 0
    frequencies: tuple[float, ...] = ()
    second_time: bool = False
    told_omega: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ..."], t: Float[Array, " b"], label=None, example=None, s: Float[Array, " b"] | None = None, omega=None
    ) -> Float[Array, "b ..."]:
        if self.activation not in ("relu", "gelu", "selu", "silu", "tanh"):
            raise ValueError(f"activation '{self.activation}': expected relu, gelu, selu, silu or tanh")
        h = fourier_features(x.reshape(x.shape[0], -1), self.frequencies)
        h = jnp.concatenate([h, t[:, None]], -1)
        if self.num_classes:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            h = jnp.concatenate([h, jnp.eye(self.num_classes + 1, dtype=h.dtype)[label]], -1)
        told = [jnp.zeros_like(t) if s is None else t - s] if self.second_time else []
        told += [jnp.zeros_like(t) if omega is None else jnp.log(omega)] if self.told_omega else []
        for layer in range(self.depth):
            h = nn.Dense(self.width)(h)
            if told and layer == 0:
                h = h + jnp.stack(told, -1) @ self.param("told", nn.initializers.zeros, (len(told), self.width))
            h = getattr(nn, self.activation)(h)
        return nn.Dense(x[0].size, kernel_init=nn.initializers.zeros)(h).reshape(x.shape)


class ResidualMLP(nn.Module):
    """An MLP of residual blocks modulated by time and label (adaptive layer norm, as in DiT, 2212.09748): norm, scale and shift, Dense, SiLU,
    dropout, Dense. Arguments as `MLP`; `example` [B]: global indices, given in training only, turn dropout on.
    """

    width: int = 384
    depth: int = 4
    dropout: float = 0.0
    num_classes: int = 0
    frequencies: tuple[float, ...] = ()
    second_time: bool = False
    told_omega: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b ..."],
        t: Float[Array, " b"],
        label=None,
        example: Int[Array, " b"] | None = None,
        s: Float[Array, " b"] | None = None,
        omega: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b ..."]:
        condition = Conditioning(self.width, self.num_classes, second_time=self.second_time, told_omega=self.told_omega)(t, label, s=s, omega=omega)
        h = nn.Dense(self.width)(fourier_features(x.reshape(x.shape[0], -1), self.frequencies))
        for _ in range(self.depth):
            shift, scale = jnp.split(nn.Dense(2 * self.width, kernel_init=nn.initializers.zeros)(condition), 2, -1)
            y = nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1 + scale) + shift
            y = Dropout(self.dropout)(nn.silu(nn.Dense(self.width)(y)), example)
            h = h + nn.Dense(self.width, kernel_init=nn.initializers.variance_scaling(0.1, "fan_in", "normal"))(y)
        h = nn.silu(nn.LayerNorm()(h))
        return nn.Dense(x[0].size, kernel_init=nn.initializers.zeros)(h).reshape(x.shape)
