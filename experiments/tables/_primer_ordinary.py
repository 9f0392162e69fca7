"""Ordinary equations of the primer: vector fields and their flows, Euler and Heun, and the rocket car, by diffrax."""

from collections.abc import Iterator

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy import optimize
from scipy.special import erf, expi

from experiments.tables._primer import number, verdict
from samplers import grids, solvers
from sde_lib import Linear

THETA = 2.0
FIELDS = {
    "linear": np.array([[-THETA, 0.0], [0.0, -THETA]]),
    "circular": np.array([[0.0, -1.0], [1.0, 0.0]]),
    "saddle": np.array([[THETA, 0.0], [0.0, -THETA]]),
}
EULER, HEUN, DOPRI5 = diffrax.Euler(), diffrax.Heun(), diffrax.Dopri5()
QUARTERS = np.linspace(0, 1, 5)
SECONDS = np.arange(11.0)  # of the car


@eqx.filter_jit
def _solve(field, y0, ts, solver, dt):
    adaptive = diffrax.PIDController(rtol=1e-12, atol=1e-13)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        solver,
        ts[0],
        ts[-1],
        dt0=dt,
        y0=y0,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=adaptive if dt is None else diffrax.ConstantStepSize(),
        adjoint=diffrax.ForwardMode(),
        max_steps=100_000,
    ).ys


def solve(field, y0, ts, solver=None, dt=None) -> np.ndarray:
    """y at the times ts of dy/dt = field(t, y), y(ts[0]) = y0: in steps of dt (linear between them), or adaptively to 1e-12 (Tsit5) with neither."""
    y0, ts, dt = (None if a is None else jnp.asarray(a, float) for a in (y0, ts, dt))
    return np.asarray(_solve(field, y0, ts, diffrax.Tsit5() if solver is None else solver, dt))


def matrix(a, t, x):
    """The field a x."""
    return jnp.asarray(a) @ x


def line(c, t, x):
    """The field c0 + c1 t + c2 x + c3/(t + 1); one function, so that its solutions are compiled once."""
    return c[0] + c[1] * t + c[2] * x + c[3] / (t + 1)


def of_line(*c: float) -> Partial:
    return Partial(line, np.array(c))


decay = of_line(0, 0, -THETA, 0)
burst = of_line(0, 0, 0, 1)  # the car whose rocket fizzles out
car = of_line(0, 0, -0.1, 1)  # the same against the wind


def car_position(t):
    """The closed form from x(0) = 0: (Ei((t + 1)/10) - Ei(1/10)) e^(-(t + 1)/10)."""
    t = np.asarray(t, float)
    return (expi((t + 1) / 10) - expi(0.1)) * np.exp(-(t + 1) / 10)


def car_turns() -> float:
    """The time at which the car stands still, x = 10/(t + 1)."""
    return optimize.brentq(lambda t: car(t, car_position(t)), 1.0, 20.0, xtol=1e-14)


def car_by_steps(t: float, h: float, heun: bool = False, drag: float = 0.1) -> float:
    """The sum that Euler's or Heun's steps of h of dx/dt = 1/(t + 1) - drag x, x(0) = 0, come to at time t."""
    k = np.arange(round(t / h))
    growth, push = 1 - h * drag, h / (k * h + 1)
    if heun:
        push = 0.5 * (growth * push + h / (k * h + h + 1))
        growth += 0.5 * (h * drag) ** 2
    return float(np.sum(growth ** (len(k) - 1 - k) * push))


def decayed(n: int, heun: bool = False) -> float:
    """What n steps of Euler's or Heun's method make of e^-2."""
    z = -THETA / n
    return (1 + z + (0.5 * z**2 if heun else 0.0)) ** n


def fields() -> Iterator[dict]:
    for x, exact, text in ((3.0, -6, "-6"), (-1.0, 2, "2")):
        yield number(f"u = -2 x at {x:g}", "001, linear vector field", decay(0.0, x), exact, text)
    points = (("circular", (1.0, 0.0), (0, 1)), ("circular", (0.0, 1.0), (-1, 0)), ("saddle", (1.0, 1.0), (2, -2)))
    for name, x, exact in points:
        u = matrix(FIELDS[name], 0.0, jnp.array(x))
        for i, value in enumerate(exact):
            up = {"text": "-2, 'up'", "agrees": verdict(value > 0, "the number is right, and is down")}
            says = up if name == "saddle" and i else {"text": str(value)}
            yield number(f"{name} field at ({x[0]:g}, {x[1]:g}): u{i + 1}", f"001, {name} vector field", u[i], value, **says)
    flow = lambda name, x, t: solve(Partial(matrix, FIELDS[name]), x, [0.0, t])[-1]
    turns = ((0.5, (1, 0), (0, 1), "by 90 degrees"), (1.0, (1, 0), (-1, 0), "by 180 degrees"), (-0.5, (0, 1), (1, 0), "the inverse"))
    for half, x, exact, text in turns:
        gap = np.hypot(*(flow("circular", x, half * np.pi) - exact))
        says = {"text": text, "agrees": verdict(gap < 1e-9, f"off by {gap:.1g}")}
        yield number(f"circular flow for t = {half:g} pi: distance from {x} to {exact}", "001, 2D rotation flow", gap, 0, **says)
    for i, text in enumerate(("grows", "shrinks")):
        exact = np.exp(THETA * (-1) ** i)
        says = {"text": text, "agrees": verdict((exact > 1) == (text == "grows"), f"by {exact:.3f}")}
        yield number(f"saddle flow of (1, 1) for t = 1: x{i + 1}", "001, saddle vector field", flow("saddle", (1, 1), 1.0)[i], exact, **says)
    for name, exact in (("linear", np.exp(-2 * THETA)), ("circular", 1.0), ("saddle", 1.0)):
        ours = np.linalg.det([flow(name, x, 1.0) for x in np.eye(2)])  # linear flows: their Jacobians' columns are where the axes go
        says = {"text": "'diffeomorphism'", "agrees": verdict(exact > 0, "singular")}
        yield number(f"{name} flow for t = 1: determinant of its Jacobian", "001, The solution to an ODE", ours, exact, **says)


def flows() -> Iterator[dict]:
    where, positions = "001, linear ODE", solve(decay, 4.0, QUARTERS)
    table = (("4.000", "-8.000"), ("2.426", "-4.853"), ("1.472", "-2.943"), ("0.893", "-1.786"), ("0.541", "-1.083"))
    for t, x, said in zip(QUARTERS, positions, table):
        exact = 4 * np.exp(-THETA * t)
        yield number(f"dx/dt = -2 x from 4: x({t:g})", where, x, exact, said[0])
        yield number(f"dx/dt = -2 x from 4: velocity at t = {t:g}", where, decay(t, x), -THETA * exact, said[1])
    back = "002, eq. (3)"
    yield number("x(1) = 4 e^-2 back to t = 0 with dx/dt = f, dt < 0", back, solve(decay, positions[-1], [1.0, 0.0])[-1], 4)
    twice = solve(of_line(0, 0, THETA, 0), positions[-1], [1.0, 0.0])[-1]
    exact = 4 * np.exp(-2 * THETA)
    says = {"text": "(4)", "agrees": verdict(np.isclose(exact, 4), "-f runs forwards in s = T - t; with dt < 0 too it is reversed twice")}
    yield number("the same with dx/dt = -f 'solved backwards'", back, twice, exact, **says)
    where = "000, Differential Equation Basics"
    yield number("dx/dt = x from 1: x(1)", where, solve(of_line(0, 0, 1, 0), 1.0, [0, 1])[-1], np.e)
    bell = solve(lambda t, x: jnp.exp(-(t**2)) + 0 * x, 0.0, [0, 1])[-1]
    yield number("dx/dt = exp(-t^2) from 0: x(1)", where, bell, np.sqrt(np.pi) / 2 * erf(1), "no elementary function", "yes: by erf")


def steps() -> Iterator[dict]:
    """Euler and Heun on dx/dt = 2, 2 t and -2 x."""
    where, constant, ramp = "000, Intuition", of_line(2, 0, 0, 0), of_line(0, 2, 0, 0)
    yield number("dx/dt = 2 from x(3) = 9: x(4), one step of Euler", where, solve(constant, 9.0, [3, 4], EULER, 1.0)[-1], 11, "11")
    for name, how, said in (("Euler", (EULER, 1.0), ("15", "23")), ("exact", (), ("16", "25")), ("Heun", (HEUN, 1.0), ("16", "25"))):
        found = solve(ramp, 9.0, [3, 4, 5], *how)
        for k, text in enumerate(said, 1):
            exact = (3 + k) ** 2 - k * (name == "Euler")  # (t + 1)^2 = t^2 + 2 t + 1, and a step of Euler lacks the 1
            yield number(f"dx/dt = 2 t from x(3) = 9: x({3 + k}), {name}", where, found[k], exact, text)
            if name == "Euler":
                yield number(f"dx/dt = 2 t from x(3) = 9: what Euler's x({3 + k}) lacks", where, (3 + k) ** 2 - found[k], k, str(k))
    by = lambda n, solver: solve(decay, 4.0, QUARTERS, solver, 1 / n)
    where, coarse = "001, Euler for dX/dt = -2X", by(4, EULER)
    errors = 4 * np.abs(0.5 ** np.arange(5) - np.exp(-THETA * QUARTERS))
    accumulates = verdict(errors[4] == errors.max(), f"largest at t = {QUARTERS[errors.argmax()]:g}, and falls")
    for k, said in enumerate((("2.000", "-8.000"), ("1.000", "-4.000"), ("0.500", "-2.000"), ("0.250", "-1.000")), 1):
        start, t, before = 4 * 0.5 ** (k - 1), QUARTERS[k], coarse[k - 1]
        yield number(f"Euler, n = 4, dx/dt = -2 x from 4: u of step {k}", where, decay(0.0, before), -THETA * start, said[1])
        yield number(f"Euler, n = 4, dx/dt = -2 x from 4: x({t:g})", where, coarse[k], 0.5 * start, said[0])
        error, says = abs(coarse[k] - solve(decay, 4.0, [0, t])[-1]), ("'accumulates'", accumulates) if k == 4 else ()
        yield number(f"Euler, n = 4, dx/dt = -2 x from 4: error of x({t:g})", "000, Formal Definition", error, errors[k], *says)
    yield number("Euler, n = 100: x(1)", where, by(100, EULER)[-1], 4 * decayed(100), "0.536")
    where, true = "001, Error analysis", np.exp(-THETA)
    relative = lambda n, solver: abs(by(n, solver)[-1] / 4 - true) / true
    for n, said in ((4, "0.25"), (10, "0.10"), (50, "0.02"), (100, "0.01")):
        yield number(f"Euler, n = {n}: relative error", where, relative(n, EULER), abs(decayed(n) - true) / true, said)
        yield number(f"Euler, n = {n}, of samplers: evaluations", where, solvers.euler()(Linear(), grids.uniform(Linear(), n)).nfe, n, str(n))
    heun, euler = (abs(decayed(n, of_heun) - true) / true for n, of_heun in ((25, True), (50, False)))
    says = {"text": "'better'", "agrees": verdict(heun < euler, f"Euler's is {euler:.4f}")}
    yield number("Heun, n = 25, as many evaluations as Euler's 50: relative error", where, relative(25, HEUN), heun, **says)
    yield number("Heun, n = 25, of samplers: evaluations", where, solvers.heun()(Linear(), grids.uniform(Linear(), 25)).nfe, 50, "50")
    for name, solver, by_polynomial, n, text in (
        ("Euler", EULER, decayed, 500, "1"),
        ("Heun", HEUN, lambda n: decayed(n, heun=True), 500, "2"),
        ("Dopri5", DOPRI5, lambda n: np.polyval([1 / 600, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1], -THETA / n) ** n, 8, "5"),
    ):
        ours = np.log2(relative(n, solver) / relative(2 * n, solver))
        exact = np.log2((by_polynomial(n) - true) / (by_polynomial(2 * n) - true))
        yield number(f"{name}: global order, n = {n} to {2 * n}", "001, Summary of solvers", ours, exact, text, digits=5)
    local = lambda h: abs(solve(decay, 4.0, [0, h], EULER, h)[-1] - 4 * np.exp(-THETA * h))
    exact = np.log2((np.expm1(-0.002) + 0.002) / (np.expm1(-0.001) + 0.001))
    yield number("Euler: local order, h = 0.001 to 0.0005", where, np.log2(local(0.001) / local(0.0005)), exact, "2", digits=6)
    outputs = jnp.array([-3.2, -1.8, 0.5, 0.9])
    found = solve(lambda t, x: outputs[jnp.int32(4 * t)] + 0 * x, 1.5, QUARTERS, EULER, 0.25)
    exact = 1.5 + 0.25 * np.cumsum(outputs)
    for k, said in enumerate(("0.700", "0.250", "0.375", "0.600")):
        what = f"given velocities, four steps from 1.5: x({QUARTERS[k + 1]:g})"
        yield number(what, "001, Algorithm 1 by hand", found[k + 1], exact[k], said)


def rocket_car() -> Iterator[dict]:
    by_steps = lambda field, solver, h: solve(field, 0.0, SECONDS, solver, h)[1:]
    in_sums = lambda h, heun=False, drag=0.1: np.array([car_by_steps(t, h, heun, drag) for t in SECONDS[1:]])
    worst = lambda found, exact: float(np.max(np.abs(found - exact(SECONDS[1:]))))
    still = solve(of_line(1, 0, 0, 0), 0.0, [0, 10], EULER, 10.0)[-1]
    yield number("constant speed: x(10), one step of Euler", "000, Case 1", still, 10, "10")
    where = "000, Case 2"
    yield number("burst: x(10) = log 11", where, solve(burst, 0.0, SECONDS)[-1], np.log(11))
    for h in (1.0, 0.1, 0.01):
        ours, exact = worst(by_steps(burst, EULER, h), np.log1p), worst(in_sums(h, drag=0.0), np.log1p)
        says = ("'a good fit'", verdict(exact < 0.01, f"off by {exact:.2f}")) if h == 0.01 else ()
        yield number(f"burst: largest error at t = 1..10, Euler, dt = {h:g}", where, ours, exact, *says)
    where, c = "000, Case 3: Wind Tunnel", -expi(0.1) * np.exp(-0.1)
    theirs = (expi(1.1) * np.exp(-0.1) + c) * np.exp(-1)
    says = {"text": f"({theirs:.4f})", "agrees": verdict(np.isclose(theirs, car_position(10.0)), "", f"with c = -Ei(0.1) e^-0.1 = {c:.4f}")}
    yield number("wind tunnel: x(10)", where, solve(car, 0.0, SECONDS)[-1], car_position(10.0), **says)
    turn = optimize.brentq(lambda t: car(t, solve(car, 0.0, [0, t])[-1]), 1.0, 20.0, xtol=1e-13)
    says = {"text": "'eventually'", "agrees": verdict(car(20.0, car_position(20.0)) < 0, "not by t = 20")}
    yield number("wind tunnel: time at which the car is pushed back", where, turn, car_turns(), **says)
    yield number("wind tunnel: how far it comes", where, solve(car, 0.0, [0, turn])[-1], 10 / (1 + car_turns()))
    yield from errors_of_steps(by_steps, in_sums, worst)


def errors_of_steps(by_steps, in_sums, worst) -> Iterator[dict]:
    """Of Euler and Heun in the wind tunnel, as steps are made and as they add up."""
    where, runs = "000, Case 3: Wind Tunnel", {}
    for name, solver, h in (("Euler", EULER, 1.0), ("Euler", EULER, 0.1), ("Euler", EULER, 0.01), ("Heun", HEUN, 1.0), ("Heun", HEUN, 0.1)):
        runs[name, h] = both = by_steps(car, solver, h), in_sums(h, name == "Heun")
        ours, exact = (worst(x, car_position) for x in both)
        says = ("'a very good match'", verdict(exact < 1e-3, f"off by {exact:.4f}")) if (name, h) == ("Heun", 0.1) else ()
        yield number(f"wind tunnel: largest error at t = 1..10, dt = {h:g}, {name}", where, ours, exact, *says)
    ours, exact = (np.abs(x - car_position(SECONDS[1:])) for x in runs["Euler", 1.0])
    for t in (1, 3, 10):
        grows = verdict(exact[9] == exact.max(), f"largest at t = {exact.argmax() + 1}, {exact.max():.3f}, and falls")
        says = ("'accumulate over time'", grows) if t == 10 else ()
        yield number(f"wind tunnel: error at t = {t}, dt = 1, Euler", "000, Formal Definition", ours[t - 1], exact[t - 1], *says)
    tenths = np.linspace(0, 10, 101)[1:]
    ours = np.abs(solve(car, 0.0, np.linspace(0, 10, 101), HEUN, 0.1)[1:] - car_position(tenths))
    exact = np.abs([car_by_steps(t, 0.1, True) - car_position(t) for t in tenths])
    yield number("wind tunnel: largest error of all steps, dt = 0.1, Heun", where, ours.max(), exact.max())
    last = tenths[exact.argmax()]
    says = {"text": "'at the start'", "agrees": verdict(last <= 2, "not in the first fifth", "in the first fifth")}
    yield number("wind tunnel: time of that error", where, tenths[ours.argmax()], last, **says)
    at_end = lambda k, *run: runs[run][k][-1] - car_position(10.0)
    largest = lambda k, *run: worst(runs[run][k], car_position)
    for name, of in (("error at t = 10", at_end), ("largest error", largest)):
        ours, exact = (of(k, "Heun", 1.0) / of(k, "Euler", 0.1) for k in (0, 1))
        says = {"text": "'matches'", "agrees": verdict(abs(exact - 1) < 0.1, f"{exact:.2f} times as large")}
        yield number(f"wind tunnel: {name} of Heun's dt = 1 over Euler's dt = 0.1", where, ours, exact, digits=6, **says)
    needed = lambda error: next(n for n in range(1, 50) if error(n) <= largest(1, "Heun", 1.0)) / 2
    ours = needed(lambda n: worst(by_steps(car, EULER, 1 / n), car_position))
    exact = needed(lambda n: worst(in_sums(1 / n), car_position))
    says = {"text": "5", "agrees": verdict(exact == 5, f"{exact:g} by the largest error; 5 by that at t = 10")}
    yield number("wind tunnel: speed-up of Heun's dt = 1 at an equal largest error, in whole steps of Euler a second", where, ours, exact, **says)
