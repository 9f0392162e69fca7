"""Checks of what samplers are given; see `sde_lib.checks`."""

import difflib
import inspect
from collections.abc import Callable

from jaxtyping import Array, Float

from sde_lib.checks import check_batch, check_cond, check_key
from sde_lib.denoiser import Denoiser
from sde_lib.flow_map import FlowMap
from sde_lib.numerics import as_float
from sde_lib.oracle import GaussianMixture


def check_denoiser(den, what: str) -> None:
    """Raise ValueError for anything but a Denoiser. what: the function that needs it."""
    if isinstance(den, Denoiser):
        return
    if isinstance(den, GaussianMixture):
        mend = "pass its denoiser, gm.denoiser(sde)"
    elif isinstance(den, FlowMap):
        mend = "samplers.jumps samples flow maps, and one of two times has a denoiser, flow_map.denoiser()"
    else:
        mend = "pass Denoiser(fn, sde, kind)"
    raise ValueError(f"{what} of a {type(den).__name__}: expected a sde_lib.Denoiser; {mend}")


def check_flow_map(flow_map, what: str) -> None:
    """Raise ValueError for anything but a FlowMap."""
    if not isinstance(flow_map, FlowMap):
        raise ValueError(f"{what} of a {type(flow_map).__name__}: expected a sde_lib.FlowMap; samplers.sample samples denoisers")


def checked(model: Denoiser | FlowMap, x, name: str, key=None) -> Float[Array, "b ..."]:
    """x as an array of real numbers.

    Raise ValueError if it has no batch axis, if the model is conditioned on another number of
    examples, or if `key` is not a JAX key."""
    x = as_float(x)
    check_batch(x, name)
    check_cond(model.cond, len(x))
    if key is not None:
        check_key(key)
    return x


def table_of(solver: Callable, sde, times):
    """The table of a solver on a grid.

    Raise ValueError, with the mend, for a name, or for a factory that has not been called."""
    from samplers import solvers  # which is made of tables
    from samplers.table import Solver, Table

    if isinstance(solver, str):
        close = difflib.get_close_matches(solver, solvers.SOLVERS, 1)
        mend = f"pass solvers.{close[0]}()" if close else f"pass one of samplers.solvers, {', '.join(solvers.SOLVERS)}, called"
        raise ValueError(f"solver = {solver!r}: expected a solver; {mend}")
    if isinstance(solver, Table):
        raise ValueError("solver is a Table: expected the function (sde, times) -> Table that makes it, e.g. solvers.heun()")
    if inspect.isfunction(solver) and inspect.signature(solver).return_annotation is Solver:
        raise ValueError(f"solver = solvers.{solver.__name__} has not been called: pass solvers.{solver.__name__}()")
    if not callable(solver) or isinstance(solver, type):
        raise ValueError(f"solver = {solver!r:.60}: expected a function (sde, times) -> Table; pass one of samplers.solvers, e.g. solvers.heun()")
    table = solver(sde, times)
    if not isinstance(table, Table):
        raise ValueError(
            f"solver {getattr(solver, '__name__', solver)!r:.60} gave a {type(table).__name__}: expected a Table; call its factory first?"
        )
    return table
