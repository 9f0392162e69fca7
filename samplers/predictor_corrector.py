r"""Predictor-corrector sampling (Song et al. 2021, 2011.13456, section 4.2 and appendix G, algorithms 1 to 5).

From each time of the grid a predictor steps to the next, where a corrector moves x within the marginal of that time by Langevin dynamics:

    x <- x + e score(x, s) + sqrt(2 e) z,    e = 2 a (r |z|/|score|)^2  (Langevin)  or  2 a (r sigma(s))^2  (annealed Langevin, their code's).

a is 1 where alpha is constant (VE; algorithm 4) and on DDPM's chain 1 - beta_i of the level i that is corrected (VP; algorithm 5). On any path it is
(alpha_s/alpha_u)^2, u the time after s, or 0 after the last: both of these, and what sub-VP (of VP's drift), which the paper leaves open, has too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from samplers.checks import check_denoiser, checked, table_of
from samplers.table import Solver, Table, check_times, execute
from sde_lib.denoiser import Denoiser
from sde_lib.noise import example_keys, normal
from sde_lib.numerics import expand


@partial(jax.tree_util.register_dataclass, data_fields=("snr",), meta_fields=("steps", "scale"))
@dataclass(frozen=True)
class Corrector:
    """`steps` moves at a level with e = 2 a (snr scale(score, z, sigma))^2, scale: [B, ...], [B, ...], [] -> [B] or []. See `langevin`."""

    snr: float
    steps: int
    scale: Callable


def _of_norms(score, z, sigma):
    norm = lambda v: jnp.linalg.norm(v.reshape(len(v), -1), axis=-1)
    return jnp.where(norm(score) > 0, norm(z) / jnp.where(norm(score) > 0, norm(score), 1.0), 0.0)  # no step where there is no score


def _of_sigma(score, z, sigma):
    return sigma


def _corrector(name: str, snr: float, steps: int, scale: Callable) -> Corrector:
    if not 0 < snr < np.inf or steps < 1 or steps != int(steps):
        raise ValueError(f"{name}: snr = {snr}, steps = {steps}: expected a finite snr above 0 and a whole number of steps, at least 1")
    return Corrector(float(snr), int(steps), scale)


def langevin(snr: float = 0.16, steps: int = 1) -> Corrector:
    """The Langevin corrector (algorithms 4 and 5). snr: r, of the noise to the score in norm; the paper's is 0.16 on CIFAR-10, 0.075 on LSUN, 0.15
    at 1024 pixels.

    The norms are of each example, those of the batch in score_sde. They are meant for many dimensions, where they hardly vary: on N(0, v I) the
    variance becomes v (1 + r^2). In one or two an example near a mode, where the score vanishes, jumps far off; take `annealed_langevin` there.
    Raises ValueError unless snr > 0 and steps >= 1.
    """
    return _corrector("langevin", snr, steps, _of_norms)


def annealed_langevin(snr: float = 0.16, steps: int = 1) -> Corrector:
    """Annealed Langevin dynamics (Song & Ermon 2019, 1907.05600), with r sigma in the place of r |z|/|score|, as in score_sde.

    Raises ValueError unless snr > 0 and steps >= 1.
    """
    return _corrector("annealed_langevin", snr, steps, _of_sigma)


def evaluations(times, predictor: Solver | None, corrector: Corrector | None = None) -> int:
    """Network evaluations that `predictor_corrector` makes: of each step one for the predictor and one for each of the corrector's."""
    return (len(times) - 1) * ((predictor is not None) + (corrector.steps if corrector else 0))


def predictor_corrector(
    den: Denoiser,
    x_T: Float[Array, "b ..."],
    times: Float[np.ndarray, " n"],
    predictor: Solver | None,
    corrector: Corrector | None = None,
    key=None,
    constrain: Callable | None = None,
    path: bool = False,
) -> Float[Array, "b ..."]:
    """Carry x_T [B, ...] from times[0] to times[-1] by a predictor and a corrector at each time but the first; one compiled scan.

    predictor: a solver of one evaluation a step without memory (`solvers.reverse_diffusion()`, `euler_maruyama()`, `ancestral()`,
        `probability_flow()`, `ddim()`, ...), or None: the corrector alone follows the levels. corrector: `langevin`, `annealed_langevin` or None.
    key: a single key or one per example; the noise, and the step size, of an example do not depend on its batch-mates.
    constrain: (keys [B], x, t []) -> x, applied to x after every move, predictor's or corrector's, with the time reached and keys fresh each time; a
        `jax.tree_util.Partial` of arrays compiles once for all of them.
    path: return x_T and the x after every step instead, [N + 1, B, ...].
    The noise at times[-1] is left in x: `den.data(x, times[-1])` denoises it. Compiled once per shape, kind of table and number of steps.
    Raises ValueError for a grid as `sample` does, or one that ends at sigma = 0, where there is no score to correct by; for a predictor with several
    evaluations a step or with memory; without both predictor and corrector; without a key where noise is drawn, and for a coupled denoiser.
    """
    check_denoiser(den, "predictor_corrector")
    x_T = checked(den, x_T, "x_T", key)
    den.check_uncoupled("predictor_corrector")
    sde, times = den.sde, check_times(den.sde, times)
    if corrector is not None and not isinstance(corrector, Corrector):
        raise ValueError(f"corrector = {corrector!r:.60}: expected samplers.langevin() or annealed_langevin(), or None")
    if predictor is None and corrector is None:
        raise ValueError("predictor_corrector: neither a predictor nor a corrector: expected one of them, or both")
    if corrector is not None and sde.sigma(times[-1]) == 0:
        raise ValueError(f"the grid ends at t = {times[-1]} with sigma = 0, where no score corrects: end it above 0, and denoise by den.data")
    table = None if predictor is None else one_row_a_step(table_of(predictor, sde, times), len(times) - 1)
    drawn = corrector is not None or constrain is not None or table.stochastic
    if drawn and key is None:
        raise ValueError("this sampler is stochastic: pass key=jax.random.key(seed)")
    keys = example_keys(key, x_T.shape[0]) if drawn else None
    shrink = (sde.alpha(times[1:]) / sde.alpha(np.append(times[2:], 0.0))) ** 2
    levels = (table, times[1:], sde.sigma(times[1:]), shrink)
    levels = jax.tree.map(lambda c: np.asarray(c, x_T.dtype), levels)
    constrain = Partial(constrain) if callable(constrain) and not isinstance(constrain, Partial) else constrain
    x, xs = _execute(den, levels, x_T, keys, corrector, constrain, path)
    return jnp.concatenate([x_T[None], xs]) if path else x


def one_row_a_step(table: Table, steps: int) -> Table:
    """The table, or ValueError if its rows cannot each follow a correction: they are more than the steps, or remember what was before it."""
    if table.nfe != steps or table.x.shape[1] > 1 or table.p.shape[1] > 1 or table.at_x is not None:
        raise ValueError(
            "a predictor makes one evaluation a step, without memory: this solver makes several or remembers; expected "
            "reverse_diffusion, euler_maruyama, ancestral, probability_flow, ddim or another of order 1"
        )
    return table


@partial(jax.jit, static_argnames="path")
def _execute(den: Denoiser, levels, x, keys, corrector: Corrector | None, constrain: Partial | None, path: bool):
    """Predict and correct at all levels: the last x, and all of them if `path`, else None."""
    moves = 1 + (corrector.steps if corrector else 0)

    def step(x, level):
        i, (row, t, sigma, shrink) = level

        def of_move(m):
            """Keys of the move's noise and of its constraint."""
            if keys is None:
                return None, None
            each = jax.vmap(jax.random.fold_in, (0, None))(keys, i * moves + m)
            return tuple(jax.vmap(jax.random.split, out_axes=1)(each))

        def constrained(x, keys):
            return x if constrain is None else constrain(keys, x, t)

        def correct(m, x):
            noise_keys, constraint_keys = of_move(m)
            z, score = normal(noise_keys, x.shape, x.dtype), den.score(x, t)
            e = expand(2 * shrink * (corrector.snr * corrector.scale(score, z, sigma)) ** 2, x)
            return constrained(x + e * score + jnp.sqrt(2 * e) * z, constraint_keys)

        if row is not None:
            noise_keys, constraint_keys = of_move(0)
            x = execute(den, jax.tree.map(lambda c: c[None], row), x, noise_keys)[0]
            x = constrained(x, constraint_keys)
        if corrector is not None:
            x = jax.lax.fori_loop(1, moves, correct, x)
        return x, x if path else None

    return jax.lax.scan(step, x, (jnp.arange(len(levels[1])), levels))
