"""Solvers made of solvers."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real

import numpy as np

from samplers.solvers.runge_kutta import heun
from samplers.solvers.steps import check_number, combine, in_data, ratio, require_decreasing, transition
from samplers.table import Row, Solver, Table, stack
from sde_lib.denoiser import plane_point
from sde_lib.sde import SDE


def afs(solver: Solver) -> Solver:
    """The analytical first step (Dockhorn et al. 2022, 2210.05475): `solver` without its first evaluation.

    The noise there is taken as x / sqrt(alpha^2 + sigma^2), which it tends to where sigma is large, and any other prediction
    is what follows: the data are alpha x / (S (S + sigma)), S^2 = alpha^2 + sigma^2.
    For tables that evaluate at x_e itself, whatever they consume; not where alpha = 0, whose first step is exact, nor for
    noise of the table's own, nor for encoding. Raises ValueError for others.
    """

    def shorter(sde, times):
        if times[0] < times[-1]:
            raise ValueError("afs: times increase, but what is known of the first step is known at the prior: expected decreasing times")
        table = solver(sde, times)
        plain = table.at_x is None and table.constant is None and table.x.ndim == table.p.ndim == 2
        if table.stochastic or not plain or table.nfe < 2 or sde.alpha(times[0]) == 0:
            raise ValueError("afs: expected a deterministic solver with two or more evaluations, each at x itself, on a grid with alpha(T) > 0")
        alpha, sigma = sde.alpha(times[0]), sde.sigma(times[0])
        total = np.hypot(alpha, sigma)
        c, d = plane_point(sde, table.prediction, times[0])
        slope = c * alpha / (total * (total + sigma)) + d / total
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


def join(sde: SDE, tables: Sequence[Table]) -> Table:
    """The tables one after another; where one consumes the noise and another the data, all the data. Raises ValueError if they do not go together."""
    consumed = {table.prediction for table in tables}
    if len(consumed) == 1:
        return stack([row for table in tables for row in table.rows()], consumed.pop())
    if consumed != {"noise", "data"}:
        raise ValueError(f"solvers that consume {' and '.join(sorted(consumed))}: expected the same, or noise and data")
    return stack([row for table in tables for row in (in_data(table.rows(), sde) if table.prediction == "noise" else table.rows())], "data")


def then(first: Solver, second: Solver, switch: float) -> Solver:
    """`first` down to the grid's time nearest to `switch`, `second` from there on: "stochastic early, deterministic late", or any other mixture.

    The history of a multistep method starts anew. Where one consumes the noise and the other the data, the mixture consumes the data. Raises
    ValueError if the predictions do not go together otherwise.
    """

    def solver(sde, times):
        at = int(np.clip(np.argmin(np.abs(times - switch)), 1, len(times) - 2)) if len(times) > 2 else 1
        tables = [first(sde, times[: at + 1]), *([second(sde, times[at:])] if at < len(times) - 1 else [])]
        return join(sde, tables)

    return solver


def _is_interval(interval) -> bool:
    """Whether it is (N, K, t_min, t_max) as `restart` takes them."""
    if not isinstance(interval, Sequence) or len(interval) != 4:
        return False
    n, k, t_min, t_max = interval
    whole = isinstance(n, Integral) and isinstance(k, Integral) and n >= 2 and k >= 0
    return whole and isinstance(t_min, Real) and isinstance(t_max, Real) and 0 < t_min < t_max < np.inf


def restart(
    intervals: Sequence[tuple[int, int, float, float]] = ((3, 2, 0.06, 0.3),), s_noise: float = 1.0, rho: float = 7.0, solver: Solver = heun("sigma")
) -> Solver:
    """Restart (Xu et al. 2023, 2306.14878, algorithm 1): having come down to t_min, noise takes x back up to t_max, and `solver` comes down again.

    intervals: of (N, K, t_min, t_max), in sigma/alpha: K times from t_max to t_min, on N times (N - 1 steps) equal in (sigma/alpha)^(1/rho); t_min
    is moved to the nearest time of the grid. s_noise: inflation of the noise, which is that of x_t given x_s. solver: a deterministic one.
    CIFAR-10, 18 steps to 0: (3, K, 0.06, 0.3) with K = 2, 5, 10, 20: 43, 55, 75, 115 evaluations. ImageNet 64, 36 steps to 0: (4, 1, 19.35, 40.79),
    (4, 1, 1.09, 1.92), (4, 5, 0.59, 1.09), (4, 5, 0.3, 0.59), (6, 6, 0.06, 0.3): 203, with s_noise = 1.003 (their program churns there as well).
    Stochastic, on any path; as many evaluations as `solver` makes in all its steps, and with K = 0 it is `solver`. Raises ValueError for intervals
    that cannot be meant, or that the grid has no time for.
    """
    check_number("restart", least=0.0, below=np.inf, s_noise=s_noise)
    check_number("restart", above=0.0, below=np.inf, rho=rho)
    if not callable(solver):
        raise ValueError(f"restart: solver {solver!r}: expected a solver, such as solvers.heun('sigma')")
    if not isinstance(intervals, Sequence) or isinstance(intervals, str):
        raise ValueError(f"restart: intervals {intervals!r}: expected a list of (N, K, t_min, t_max)")
    for interval in intervals:
        if not _is_interval(interval):
            raise ValueError(f"restart: interval {interval}: expected (N, K, t_min, t_max) with N of 2 or more, K of 0 or more and 0 < t_min < t_max")

    def noised(table: Table, scale: float, std: float) -> Table:
        """The table whose last x is multiplied and then noised."""
        *rows, last = table.rows()
        scaled = lambda lags: {k: scale * c for k, c in lags.items()}
        last = replace(last, x=scaled(last.x), p=scaled(last.p), constant=scale * last.constant, noise=std)
        return stack([*rows, last], table.prediction)

    def restarted(sde, times):
        require_decreasing("restart", times)
        if solver(sde, times).stochastic:
            raise ValueError("restart: the solver draws noise itself: expected a deterministic one, such as heun('sigma')")
        r = np.array([ratio(sde, t) if sde.alpha(t) > 0 else np.inf for t in times])
        tables, start = [], 0
        for n, k, t_min, t_max in sorted(intervals, key=lambda interval: -interval[2]):
            i = int(np.argmin(np.where(r > 0, np.abs(r - t_min), np.inf)))
            if not start < i or not r[i] < t_max <= r[0]:
                raise ValueError(
                    f"restart: {(n, k, t_min, t_max)}: sigma/alpha of the grid is {r[0]:.4g} to {r[-1]:.4g}, nearest to t_min {r[i]:.4g}: "
                    "expected t_max within it, and a time of the grid below t_max for each interval: take more steps"
                )
            if k == 0:
                continue
            again = sde.time(-rho * np.log(np.linspace(t_max ** (1 / rho), r[i] ** (1 / rho), n)))
            again[-1] = times[i]
            scale, variance = transition(sde, again[0], again[-1])
            down = [solver(sde, times[start : i + 1]), *[solver(sde, again)] * k]
            tables += [noised(table, scale, s_noise * np.sqrt(variance)) for table in down[:-1]] + down[-1:]
            start = i
        return join(sde, tables + ([solver(sde, times[start:])] if start < len(times) - 1 else []))

    return restarted
