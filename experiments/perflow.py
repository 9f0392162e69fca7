r"""PeRFlow (Yan et al. 2024, 2405.07510): a teacher's flow, straightened within each of K windows of time, T k/K > t > T (k - 1)/K.

Data noised to the start t_s of the window that t is in, z_s = alpha x_0 + sigma eps, are carried by the teacher to its end t_e, and the student
regresses on the curve alpha x_0' + sigma eps' that joins both (`samplers.straightness.chord`), at t. On the linear path with kind "velocity" that is
the paper's velocity form, F = (z_s - z_e)/(t_s - t_e); with kind "noise" its epsilon form, z_e = lambda z_s + eta eps', lambda = alpha_e/alpha_s,
eta = sigma_e - lambda sigma_s. The student is told where its window ends as the second time of a flow map, if its network has one; as that follows
from t, the student is a Denoiser too: its flow takes one step of DDIM (on the linear path, of Euler) for a window, and more for more.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from samplers import solvers
from samplers.straightness import chord
from samplers.table import by_example, execute
from sde_lib import SDE, Denoiser
from sde_lib.numerics import expand

NEAR = 1e-2  # of a window: within it of an edge, t is the edge; a grid that ends at eps has times beside them


def check(config: ConfigDict) -> int:
    """The number of windows. Raises ValueError for impossible options."""
    for name in ("windows", "steps"):
        if config.objective.perflow[name] < 1:
            raise ValueError(f"config.objective.perflow.{name} = {config.objective.perflow[name]}: expected at least 1")
    return config.objective.perflow.windows


def window(sde: SDE, windows: int, t: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """The end and the start (t_e, t_s) of the window of each of t [B], t_e < t <= t_s; of t less than `NEAR` of a window above an edge those of the
    window below it, and of t = 0 those of the last."""
    end = jnp.maximum(jnp.ceil(t / sde.T * windows - NEAR) - 1, 0)
    return sde.T * end / windows, sde.T * (end + 1) / windows


def ends(teacher: Denoiser, options: ConfigDict, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], t: Float[Array, " b"]):
    """(x_0', eps') of the window of each t [B]: of x0 [B, ...] with its noise at the start, and `options.steps` steps of the teacher's DDIM on."""
    sde, count = teacher.sde, options.windows
    edges = sde.T * np.arange(count + 1) / count
    tables = [solvers.ddim()(sde, np.linspace(start, end, options.steps + 1)) for end, start in zip(edges[:-1], edges[1:])]
    end, start = window(sde, count, t)
    index = jnp.round(end / sde.T * count).astype(int)

    z = expand(sde.alpha(start), x0) * x0 + expand(sde.sigma(start), x0) * noise
    last, _ = execute(teacher, by_example(tables, index, z), z, None)
    return jax.lax.stop_gradient(chord(sde, z, start, last, end))
