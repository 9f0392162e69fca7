"""A conditional flow on the unit cube: the density q(u | level) of variational dequantization (Ho et al. 2019, Flow++, 1902.00275, section 3.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Dequantizer(nn.Module):
    """Affine couplings (RealNVP, 1605.08803) of logit(u), conditioned on x, the middles of the levels; u is uniform at the start.

    Called with x [B, ...] and e [B, ...] uniform in (0, 1) it returns u [B, ...] in (0, 1) and log q(u | x) in nats, [B]. Images [B, H, W, C] are
    seen by 3x3 convolutions and split as a chequerboard, other shapes by dense layers and in turns. layers: couplings; width: of the hidden layers.
    """

    width: int = 32
    layers: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], e: Float[Array, "b ..."]) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
        image = x.ndim == 4
        shape, flat = x.shape, lambda a: a if image else a.reshape(len(a), -1)
        layer = lambda features, **options: nn.Conv(features, (3, 3), **options) if image else nn.Dense(features, **options)
        x, y = flat(x), flat(jax.scipy.special.logit(e))
        log_q = jnp.sum(flat(jnp.log(e) + jnp.log1p(-e)), range(1, y.ndim))  # of the logit of a uniform variable
        places = np.indices(y.shape[1:-1] if image else y.shape[1:]).sum(0)
        places = places[..., None] if image else places
        known = nn.silu(layer(self.width)(nn.silu(layer(self.width)(x))))
        for k in range(self.layers):
            moved = places % 2 == k % 2
            h = nn.silu(layer(self.width)(jnp.concatenate([known, jnp.where(moved, 0.0, y)], -1)))
            shift, scale = jnp.split(layer(2 * y.shape[-1], kernel_init=nn.initializers.zeros)(h), 2, -1)
            scale = jnp.where(moved, 2.0 * jnp.tanh(0.5 * scale), 0.0)
            y = y * jnp.exp(scale) + jnp.where(moved, shift, 0.0)
            log_q = log_q - jnp.sum(scale, range(1, y.ndim))
        log_q = log_q - jnp.sum(nn.log_sigmoid(y) + nn.log_sigmoid(-y), range(1, y.ndim))
        return nn.sigmoid(y).reshape(shape), log_q
