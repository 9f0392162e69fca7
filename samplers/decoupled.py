"""The log-likelihood's path and divergence computed apart: one rule over the whole interval where it is accurate, else panels."""

import equinox as eqx
import jax.numpy as jnp

from samplers.blocks import block_size, denoiser_of, map_blocks, probes_of, update_blocks
from samplers.change_of_variables import LogLikelihood, first_order_truncation, summary
from samplers.panels import by_panels
from samplers.whole import by_whole


@eqx.filter_jit
def decoupled(den, x, probes, ends, radii, rtol, atol, kind, chunk, prior_std) -> LogLikelihood:
    """See `samplers.likelihood.log_likelihood`. ends, radii: the angle phi and the radius c at eps and at the prior."""
    size = block_size(len(x), x[0].size)
    w_0, w_T = jnp.sqrt(ends[0]), jnp.sqrt(ends[1])

    def of(rows):
        return denoiser_of(den, rows), x[rows] / radii[0], probes_of(probes, rows, x.ndim)

    def first(rows):
        some, z, vectors = of(rows)
        whole, v, forms = by_whole(some, z, w_0, w_T, vectors, rtol, atol, kind, chunk)
        return whole, v, forms, first_order_truncation(ends[0], z, v, forms.mean(-1), radii[0])

    whole, v, forms, truncation = map_blocks(first, len(x), size)

    def rest(rows, wanted):
        some, z, vectors = of(rows)
        return by_panels(some, z, w_0, w_T, v[rows], forms[rows], vectors, wanted, rtol, atol, kind, chunk)

    result = update_blocks(rest, ~whole.success, whole, size)
    spent = jnp.where(whole.success, 0, whole.nfe) + result.nfe
    divergences = jnp.where(whole.success, 0, whole.divergences) + result.divergences
    success = result.success & jnp.all(jnp.isfinite(result.change), -1)
    latent = radii[1] * result.z
    errors = result.error, radii[1] * result.z_error
    return summary(den.sde, prior_std, latent, result.change, spent, success, divergences, *errors, truncation, radii, kind == "exact")
