"""Solvers that say what they are: `repr(heun(prediction="data"))` is heun(prediction='data')."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from samplers.table import Solver, Table
from sde_lib.sde import SDE

LONGEST = 80  # characters of an option's value


@dataclass(frozen=True, eq=False, repr=False)
class Named:
    """A solver, and the call that made it."""

    solver: Solver
    call: str

    def __call__(self, sde: SDE, times: np.ndarray) -> Table:
        return self.solver(sde, times)

    def __repr__(self) -> str:
        return self.call


def brief(value) -> str:
    """An option's value, cut to `LONGEST` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def named(factory: Callable[..., Solver]) -> Callable[..., Solver]:
    """A function of options that returns a solver, whose solvers are `Named`."""

    @functools.wraps(factory)
    def made(*args, **options) -> Solver:
        given = [*map(brief, args), *(f"{name}={brief(value)}" for name, value in options.items())]
        return Named(factory(*args, **options), f"{factory.__name__}({', '.join(given)})")

    return made
