"""Runge-Kutta methods on the probability-flow ODE dx/dt = velocity(x, t), in the variable t."""

from samplers.table import Row, Solver, stack


def euler() -> Solver:
    """Euler's method in t: x' = x + (t' - t) velocity. Order 1, one evaluation a step, consumes the velocity."""

    def solver(sde, times):
        return stack([Row(t, {0: 1.0}, {0: s - t}) for t, s in zip(times[:-1], times[1:])], "velocity")

    return solver


def heun() -> Solver:
    """Heun's method in t (explicit trapezoid; EDM, 2206.00364, algorithm 1). Order 2, consumes the velocity.

    Two evaluations a step. A last step to t = 0, where the velocity of a prediction is undefined, is Euler's: 2N - 1 in all.
    """

    def solver(sde, times):
        rows = []
        for t, s in zip(times[:-1], times[1:]):
            rows.append(Row(t, {0: 1.0}, {0: s - t}))
            if s > 0:
                rows.append(Row(s, {1: 1.0}, {0: 0.5 * (s - t), 1: 0.5 * (s - t)}))
        return stack(rows, "velocity")

    return solver
