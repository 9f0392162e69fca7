r"""A fixed-grid sampler is a table of coefficients, and one scan executes every table.

A table has a row per network evaluation e = 0, 1, ... With x_0 the start, P_e the prediction that the table consumes (a name on the
prediction plane) and xi_e standard normal noise, row e means

    y_e     = sum_k ax[e, k] x_{e-k} + sum_k ap[e, k] P_{e-1-k} + an[e] xi_e
    P_e     = prediction at (y_e, t_e)
    x_{e+1} = sum_k bx[e, k] x_{e-k} + sum_k bp[e, k] P_{e-k}   + bn[e] xi_e + c[e],

and the result is the last x. These are the general linear methods (Butcher 1966): Runge-Kutta, linear multistep, exponential integrators,
predictor-correctors and, with noise, the stochastic samplers of diffusion models. Multistep solvers have one row a step; a two-stage method
has two, its intermediate point being one of the x's.

A solver is a function (sde, times) -> Table, in float64 on the host. To write one, make a `Row` per evaluation and `stack` them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from samplers.checks import check_denoiser, checked, table_of
from sde_lib.brief import known, shape_of
from sde_lib.denoiser import PLANE, Denoiser
from sde_lib.noise import example_keys
from sde_lib.sde import SDE


@dataclass(frozen=True)
class Row:
    """One evaluation: at time t, then the next x. Coefficients by lag: x[k] multiplies x_{e-k}, p[k] multiplies P_{e-k}.

    at_x, at_p, at_noise: the point of evaluation, by default x_e itself; at_p[k] multiplies P_{e-1-k}.
    A coefficient is a number, or an array that broadcasts against one example (per-coordinate solvers).
    """

    t: float
    x: Mapping[int, float]
    p: Mapping[int, float]
    noise: float = 0.0
    at_x: Mapping[int, float] = field(default_factory=lambda: {0: 1.0})
    at_p: Mapping[int, float] = field(default_factory=dict)
    at_noise: float = 0.0
    constant: float = 0.0


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("times", "at_x", "at_p", "at_noise", "x", "p", "noise", "constant"),
    meta_fields=("prediction",),
)
@dataclass(frozen=True)
class Table:
    """The coefficients of all rows, float64 on the host: times [E]; x, at_x [E, Kx]; p, at_p [E, Kp]; noise, at_noise [E].

    at_x, at_p are None where every evaluation is at x_e; noise, at_noise are None for deterministic tables; constant is None where it is zero.
    Coefficients may have the shape of an example in addition, [E, K, ...].
    """

    prediction: str
    times: Float[np.ndarray, " e"]
    x: Float[np.ndarray, "e kx"]
    p: Float[np.ndarray, "e kp"]
    noise: Float[np.ndarray, " e"] | None
    at_x: Float[np.ndarray, "e kx"] | None
    at_p: Float[np.ndarray, "e kp"] | None
    at_noise: Float[np.ndarray, " e"] | None
    constant: Float[np.ndarray, "e ..."] | None

    def __repr__(self) -> str:
        noise = "with noise" if self.stochastic else "without noise"
        times = known(self.times)
        ends = "" if times is None or times.ndim != 1 or not len(times) else f" from {times[0]:.4g} to {times[-1]:.4g}"
        shapes = ", ".join(f"{name} {shape_of(getattr(self, name))}" for name in ("x", "p"))
        return f"Table(prediction={self.prediction!r}, times {shape_of(self.times)}{ends}, {shapes}, {noise})"

    @property
    def nfe(self) -> int:
        """Network evaluations."""
        return len(self.times)

    @property
    def stochastic(self) -> bool:
        return self.noise is not None

    def rows(self) -> list[Row]:
        """The rows that `stack` makes this table of, but for coefficients that are zero."""
        lags = lambda c, e: {k: v for k, v in enumerate(c[e]) if np.any(v)}
        at = lambda e: {} if self.at_x is None else {"at_x": lags(self.at_x, e), "at_p": lags(self.at_p, e)}
        value = lambda c, e: 0.0 if c is None else c[e]
        rest = lambda e: {name: value(getattr(self, name), e) for name in ("noise", "at_noise", "constant")}
        return [Row(self.times[e], lags(self.x, e), lags(self.p, e), **rest(e), **at(e)) for e in range(self.nfe)]


Solver = Callable[[SDE, np.ndarray], Table]


def stack(rows: Sequence[Row], prediction: str) -> Table:
    """Rows to a Table. Raises ValueError for an unknown prediction and for coefficients that are not finite."""
    if prediction not in PLANE:
        raise ValueError(f"unknown prediction '{prediction}': expected one of {', '.join(PLANE)}")

    def dense(lags, depth):
        shape = np.broadcast_shapes(*(np.shape(c) for row in lags for c in row.values()), ())
        full = np.zeros((len(rows), depth, *shape))
        for e, row in enumerate(lags):
            for k, c in row.items():
                full[e, k] = c
        return full

    depth_x = 1 + max(k for row in rows for k in (*row.x, *row.at_x))
    depth_p = 1 + max((k for row in rows for k in (*row.p, *row.at_p)), default=0)
    x, p = dense([row.x for row in rows], depth_x), dense([row.p for row in rows], depth_p)
    at_x, at_p = dense([row.at_x for row in rows], depth_x), dense([row.at_p for row in rows], depth_p)
    column = lambda name: np.stack(np.broadcast_arrays(*(getattr(row, name) for row in rows)))
    noise, at_noise, constant = column("noise"), column("at_noise"), column("constant")
    stochastic = bool(np.any(noise) or np.any(at_noise))
    moved = bool(np.any(at_noise) or any(row.at_p for row in rows) or any(dict(row.at_x) != {0: 1.0} for row in rows))
    table = Table(
        prediction=prediction,
        times=np.array([row.t for row in rows], np.float64),
        x=x,
        p=p,
        noise=noise if stochastic else None,
        at_x=at_x if moved else None,
        at_p=at_p if moved else None,
        at_noise=at_noise if moved and stochastic else None,
        constant=constant if np.any(constant) else None,
    )
    for name in ("times", "x", "p", "noise", "at_x", "at_p", "at_noise", "constant"):
        value = getattr(table, name)
        if value is not None and not np.all(np.isfinite(value)):
            raise ValueError(
                f"a coefficient '{name}' of this solver is not finite on this grid (times {table.times[0]:.4g} to {table.times[-1]:.4g})"
            )
    return table


def pad(table: Table, nfe: int, depth: int) -> Table:
    """The table with rows that change nothing after its last, room for `depth` x's and predictions, and no coefficient left out: tables so padded
    that consume one prediction run the same compiled program. Coefficients must be numbers."""
    fill = lambda c: np.zeros((nfe, depth)) if c is None else np.pad(c, ((0, nfe - len(c)), (0, depth - c.shape[1])))
    line = lambda c: np.zeros(nfe) if c is None else np.pad(c, (0, nfe - len(c)))
    x, at_x = fill(table.x), fill(table.at_x)
    x[table.nfe :, 0] = at_x[table.nfe :, 0] = 1.0
    if table.at_x is None:
        at_x[:, 0] = 1.0
    times = np.pad(table.times, (0, nfe - table.nfe), mode="edge")
    lines = {name: line(getattr(table, name)) for name in ("noise", "at_noise", "constant")}
    return replace(table, times=times, x=x, at_x=at_x, p=fill(table.p), at_p=fill(table.at_p), **lines)


def sample(
    den: Denoiser, x_T: Float[Array, "b ..."], times: Float[np.ndarray, " n"], solver: Solver, key=None, path: bool = False
) -> Float[Array, "b ..."]:
    """Carry x_T [B, ...] from times[0] to times[-1] with a table solver; one compiled scan.

    den: a Denoiser. times: decreasing, on the host (see `samplers.grids`). solver: from `samplers.solvers`.
    Increasing times, such as ``grid[::-1]``, encode: a deterministic solver carries x from near the data to its latent at
    times[-1], with the same orders (DDIM inversion is ``sample(den, x, grid[::-1], ddim())``). They start above sigma = 0.
    The state, the times and the coefficients are float32, and so is the result, whatever the dtype of x_T and of the
    network; where x_T is float64 they are float64.
    key: for stochastic solvers, a single key or one per example; the noise of an example does not depend on its batch-mates.
    path: return x_T and the x after every evaluation instead, [NFE + 1, B, ...].
    Compiled once per shape, kind of table and number of rows: neither other times nor other coefficients compile anew.
    Raises ValueError for a grid that is not monotone, leaves [0, T] or encodes from sigma = 0, and for a stochastic solver on increasing times,
    without a key or of a coupled denoiser.
    """
    check_denoiser(den, "sample")
    x_T = checked(den, x_T, "x_T", key)
    times = check_monotone(den.sde, times)
    if times[0] < times[-1] and den.sde.sigma(times[0]) == 0:
        raise ValueError(f"times increase from {times[0]}, where sigma = 0: expected a start above it, such as {den.sde.sampling_eps}")
    table = table_of(solver, den.sde, times)
    if table.stochastic:
        den.check_uncoupled("a stochastic solver")
    if table.stochastic and key is None:
        raise ValueError("this solver is stochastic: pass key=jax.random.key(seed)")
    keys = example_keys(key, x_T.shape[0]) if table.stochastic else None
    x, xs = execute(den, jax.tree.map(lambda c: np.asarray(c, x_T.dtype), table), x_T, keys, path)
    return jnp.concatenate([x_T[None], xs]) if path else x


def check_times(sde: SDE, times) -> Float[np.ndarray, " n"]:
    """The decreasing times as float64, or ValueError naming what is wrong with them."""
    times = check_monotone(sde, times)
    if times[0] < times[-1]:
        raise ValueError("times must decrease, from the prior (T) to the data (0): reverse the grid?")
    return times


def check_monotone(sde: SDE, times) -> Float[np.ndarray, " n"]:
    """The times, which decrease or increase, as float64, or ValueError naming what is wrong with them."""
    if isinstance(times, jax.core.Tracer):
        raise ValueError("times are traced: make the grid outside of jit (tables are made on the host in float64)")
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times of shape {times.shape}: expected two or more times in one dimension")
    steps = np.diff(times)
    if not (np.all(steps < 0) or np.all(steps > 0)):
        raise ValueError("times must decrease at every step, from the prior (T) to the data (0), or increase at every step to encode")
    if not (0 <= times.min() and times.max() <= sde.T * (1 + 1e-6)):
        raise ValueError(f"times from {times[0]} to {times[-1]}: expected them within [0, {sde.T}] for {sde}")
    return np.minimum(times, sde.T)


def by_example(tables: Sequence[Table], index: Int[Array, " b"], x: Float[Array, "b ..."]) -> Table:
    """Tables of one kind and size to one for `execute`, by which each example of x [B, ...] has the table of its index."""

    def chosen(*rows):  # [tables, E, ...] -> [E, ..., B, 1, ...]
        found = jnp.moveaxis(jnp.asarray(np.stack(rows), x.dtype)[index], 0, -1)
        return found if rows[0].ndim == 1 else found.reshape(*found.shape, *(1,) * (x.ndim - 1))

    return jax.tree.map(chosen, *tables)


@partial(jax.jit, static_argnames="path")
def execute(den: Denoiser, table: Table, x: Float[Array, "b ..."], keys, path: bool = False):
    """Run every row of `table` (in the precision of x) from x: the last x, and all of them [E, B, ...] if `path`, else None.

    keys: [B], or None for a deterministic table.
    """
    depth_x, depth_p = table.x.shape[1], table.p.shape[1]

    def combine(coefficients, history, total=None):
        for c, h in zip(coefficients, history):
            total = c * h if total is None else total + c * h
        return total

    def step(carry, row):
        xs, ps = carry
        e, row = row
        if row.noise is not None:
            xi = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, e), x.shape[1:], x.dtype))(keys)
        y = xs[0] if row.at_x is None else combine(row.at_p, ps, combine(row.at_x, xs))
        if row.at_noise is not None:
            y = y + row.at_noise * xi
        ps = (den.predict(table.prediction, y, row.times), *ps)[:depth_p]
        new = combine(row.p, ps, combine(row.x, xs))
        if row.noise is not None:
            new = new + row.noise * xi
        if row.constant is not None:
            new = new + row.constant
        return ((new, *xs)[:depth_x], ps), new if path else None

    zeros = jnp.zeros_like(x)
    (xs, _), every = jax.lax.scan(step, ((x,) + (zeros,) * (depth_x - 1), (zeros,) * depth_p), (jnp.arange(table.nfe), table))
    return xs[0], every
