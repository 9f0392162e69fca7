"""Solvers made of solvers."""

import numpy as np

from samplers.solvers.steps import combine, in_data
from samplers.table import Row, Solver, stack


def afs(solver: Solver) -> Solver:
    """The analytical first step (Dockhorn et al. 2022, 2210.05475): `solver` without its first evaluation, the noise there being taken as
    x / sqrt(alpha^2 + sigma^2), which it tends to where sigma is large.

    For tables that consume the noise and evaluate at x_e itself; not where alpha = 0, whose first step is exact. Raises ValueError for others.
    """

    def shorter(sde, times):
        table = solver(sde, times)
        plain = table.at_x is None and table.constant is None and table.x.ndim == table.p.ndim == 2
        if table.prediction != "noise" or table.stochastic or not plain or table.nfe < 2:
            raise ValueError("afs: expected a deterministic solver with two or more evaluations that consumes the noise, on a grid with alpha(T) > 0")
        slope = 1 / np.sqrt(sde.alpha(times[0]) ** 2 + sde.sigma(times[0]) ** 2)
        first = float(table.x[0, 0] + slope * table.p[0, 0])  # x_1 = first x_0
        rows = []
        for e in range(1, table.nfe):
            terms = []
            for k, c in enumerate(table.x[e]):
                if c:  # old x_{e-k}: x_0 and x_1 = first x_0 are both the new x_0, the others are one place earlier
                    old = e - k
                    terms.append((c * (first if old == 1 else 1.0), {e - 1 - max(old - 1, 0): 1.0}))
            for k, c in enumerate(table.p[e]):
                if c and k == e:
                    terms.append((c * slope, {e - 1: 1.0}))
            p = {k: c for k, c in enumerate(table.p[e]) if c and k < e}
            rows.append(Row(table.times[e], combine(*terms), p, at_x={0: first} if e == 1 else {0: 1.0}))
        return stack(rows, table.prediction)

    return shorter


def then(first: Solver, second: Solver, switch: float) -> Solver:
    """`first` down to the grid's time nearest to `switch`, `second` from there on: "stochastic early, deterministic late", or any other mixture.

    The history of a multistep method starts anew. Where one consumes the noise and the other the data, the mixture consumes the data. Raises
    ValueError if the predictions do not go together otherwise.
    """

    def solver(sde, times):
        at = int(np.clip(np.argmin(np.abs(times - switch)), 1, len(times) - 2)) if len(times) > 2 else 1
        tables = [first(sde, times[: at + 1]), *([second(sde, times[at:])] if at < len(times) - 1 else [])]
        consumed = {table.prediction for table in tables}
        if len(consumed) == 1:
            return stack([row for table in tables for row in table.rows()], consumed.pop())
        if consumed != {"noise", "data"}:
            raise ValueError(f"then: solvers that consume {' and '.join(sorted(consumed))}: expected the same, or noise and data")
        return stack([row for table in tables for row in (in_data(table.rows(), sde) if table.prediction == "noise" else table.rows())], "data")

    return solver
