r"""Score matching of the noised data x_t without the noise that is in them, by the divergence of the score s (Hyvarinen 2005, theorem 1):

    E |s - grad log p_t|^2 = E [ |s|^2 + 2 tr(ds/dx) ] + E |grad log p_t|^2,

whose last term no network changes. "implicit" takes the trace exactly, by D derivatives; "sliced" (Song et al. 2019, 1905.07088, eq. 8: with reduced
variance) by v^T (ds/dx) v along one random v of signs. Both equal denoising score matching up to a constant.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from samplers.change_of_variables import trace_forms
from samplers.likelihood import drawn
from sde_lib import Denoiser

LOSSES = {"implicit": "exact", "sliced": "hutchinson"}  # and how they take the trace
CHUNK = 64  # derivatives at once


def implicit(den: Denoiser, x: Float[Array, "b ..."], t: Float[Array, " b"], loss: str, keys) -> Float[Array, " b"]:
    """(|s|^2 + 2 tr(ds/dx)) / D of each example, [B]: its expectation is twice Hyvarinen's and sliced score matching's J, for each dimension.

    loss: a name in `LOSSES`. keys: [B], of v. The network is evaluated once, and derived D times or once.
    """
    score, jvp = jax.linearize(lambda x: den.score(x, t), x)
    trace = trace_forms(jvp, drawn(keys, x, (1,), "rademacher"), x, LOSSES[loss], CHUNK)[:, 0]
    return (jnp.sum(score**2, range(1, x.ndim)) + 2 * trace) / x[0].size
