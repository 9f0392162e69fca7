"""Between latents x_T of the probability flow, which `samplers.encode` makes of data and `samplers.sample_adaptive` makes data of."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sde_lib.checks import check_batch
from sde_lib.numerics import as_float, expand


def slerp(a: Float[Array, "b ..."], b: Float[Array, "b ..."], weight: Float[Array, " b"] | float) -> Float[Array, "b ..."]:
    """Spherical interpolation (Shoemake 1985; DDIM, 2010.02502, eq. 67), example by example: a at weight 0, b at weight 1.

        sin((1 - w) theta)/sin(theta) a + sin(w theta)/sin(theta) b,        theta the angle between a and b

    Between ends of one norm all has that norm, and between two independent draws N(0, I) it is N(0, I) again but for theta, which in many dimensions
    is pi/2; (1 - w) a + w b would have the variance (1 - w)^2 + w^2. Ends that point the same way are interpolated linearly; between opposite ends
    there is no one way, and the result is not finite or arbitrary. weight: [B], or one for all.
    """
    a, b = as_float(a), as_float(b)
    for name, end in (("a", a), ("b", b)):
        check_batch(end, name)
    flat = lambda x: x.reshape(len(x), -1) / jnp.linalg.norm(x.reshape(len(x), -1), axis=1, keepdims=True)
    u, v = flat(a), flat(b)
    theta = 2 * jnp.arctan2(jnp.linalg.norm(u - v, axis=1), jnp.linalg.norm(u + v, axis=1))  # arccos is inaccurate at small angles
    weight = jnp.broadcast_to(jnp.asarray(weight, a.dtype), theta.shape)
    part = lambda w: expand(w * jnp.sinc(w * theta / jnp.pi) / jnp.sinc(theta / jnp.pi), a)
    return part(1 - weight) * a + part(weight) * b
