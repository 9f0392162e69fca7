"""Solvers of the primer: seed 001's summary, how nearly constant its field is, and what 50 steps of Euler are worth."""

from collections.abc import Iterator

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from experiments.tables._primer import number, verdict
from experiments.tables._primer_models import CENTRE, STD, four_gaussians, line, speed, transported
from samplers import grids, sample, sample_adaptive, solvers
from samplers.straightness import straightness
from sde_lib import EDM, Denoiser, Linear

SUMMARY = "001, Summary of solvers"


def root_mean_square(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def unsteadiness(mean: float, std: float, nodes: int = 64) -> float:
    """E int |u - m|^2 dt / E |m|^2, m the mean of u in time, of two Gaussians at +-mean, and so of four in the plane: by quadrature over the paths of
    the quantiles."""
    (z, weights), (t, w) = (np.polynomial.legendre.leggauss(n) for n in (400, nodes))
    z, weights, t, w = 8 * z, 8 * weights * norm.pdf(8 * z), 0.5 * (t + 1), 0.5 * w
    u = norm.cdf(z)
    chord = weights @ (z - transported(u, mean, std)) ** 2
    energy = sum(dt * weights @ speed(transported(u, mean, std, s), s, mean, std) ** 2 for s, dt in zip(t, w))
    return energy / chord - 1


def summary() -> Iterator[dict]:
    """Evaluations a step, off the tables; orders, from 1000 to 2000 steps even in log-SNR on the flow of two Gaussians, of known quantiles: from
    so far out that the lower orders of the first steps do not count."""
    dpm, sde = solvers.dpm_solver_pp, Linear()
    ways = [("Euler", solvers.euler(), 1, "1"), ("Heun", solvers.heun(), 2, "2"), ("Euler-Maruyama", solvers.euler_maruyama(), 1, "1")]
    ways += [("DPM-Solver++(2M)", dpm(2), 1, "1-2"), ("DPM-Solver++(2S)", dpm(2, "singlestep"), 2, "1-2")]
    ways += [("DPM-Solver++(3S)", dpm(3, "singlestep"), 3, "1-2")]
    for name, solver, exact, text in ways:
        says = {"agrees": verdict(exact <= 2, str(exact))} if text == "1-2" else {}
        few, more = (solver(sde, grids.uniform(sde, n)).nfe for n in (10, 20))  # the first step, from alpha = 0, has one
        yield number(f"{name}: evaluations a step", SUMMARY, (more - few) / 10, exact, text, **says)
    den, u, first, last = line(CENTRE, STD).denoiser(sde), np.array([0.7]), 0.9999, 0.05
    start, end = (transported(u, CENTRE, STD, t)[:, None] for t in (first, last))

    def error(solver, n: int) -> float:
        times = sde.time(np.linspace(sde.log_snr(first), sde.log_snr(last), n + 1))
        return abs(np.asarray(sample(den, start, times, solver)) - end).item()

    ways = [("2M", dpm(2), 2, "2"), ("2S", dpm(2, "singlestep"), 2, "2"), ("3S", dpm(3, "singlestep"), 3, "3")]
    ways += [("3M, as released", dpm(3), 2, "3"), ("3M, with all of its second difference", dpm(3, consistent=True), 3, "3")]
    for name, solver, exact, text in ways:
        ours = np.log2(error(solver, 1000) / error(solver, 2000))
        yield number(f"DPM-Solver++({name}): order", SUMMARY, ours, exact, text, digits=1)


def steadiness(n: int) -> Iterator[dict]:
    """How far the field is from constant along its own paths: of four Gaussians, and of two after one rectification."""
    found = straightness(four_gaussians().denoiser(Linear()), Linear().prior_sample(jax.random.key(17), (n, 2)))
    varies, chord = np.asarray(found.straightness), np.asarray(found.energy - found.straightness)
    ours, exact = varies.mean() / chord.mean(), unsteadiness(CENTRE, STD)
    error = np.std(varies - ours * chord, ddof=1) / np.sqrt(n) / chord.mean()  # of the ratio, to first order
    says = {"text": "'nearly constant'", "agrees": verdict(exact < 0.1, f"it varies by {exact:.2f} times the square of its mean")}
    what = "four Gaussians, along the paths: mean square of u less its mean, over that of the mean"
    yield number(what, "001, Step schedule matters: CondOT", ours, exact, error=error, **says)
    again = straightness(rectified(line(CENTRE, STD).denoiser(Linear())), Linear().prior_sample(jax.random.key(18), (20, 1)))
    largest = np.max(again.straightness)
    says = {"text": "'a few are sufficient'", "agrees": verdict(largest < 1e-6, "not one", "one in one dimension, where no lines cross")}
    yield number("two Gaussians, rectified once: int |u less its mean|^2 dt, largest of 20 paths", "002, 4.4.2", largest, 0, digits=6, **says)


def rectified(den: Denoiser, n: int = 201) -> Denoiser:
    """The field x_T - x_0 of the pairs of an ODE in one dimension, where (1 - t) x_0 + t x_T is x; between n pairs by lines."""
    x_T = jnp.linspace(-5.0, 5.0, n)
    x_0 = sample_adaptive(den, x_T[:, None], rtol=1e-8, atol=1e-8).x[:, 0]
    at = jax.vmap(lambda x, t: jnp.interp(x, (1 - t) * x_0 + t * x_T, x_T - x_0))
    return Denoiser(lambda x, t: at(x[:, 0], t)[:, None], Linear(), "velocity")


def few_steps() -> Iterator[dict]:
    """50 steps of Euler and fewer of others, even in t, from 64 quantiles of the prior: ours against the flow by diffrax, exact against quantiles."""
    u, den = (np.arange(64) + 0.5) / 64, line(CENTRE, STD).denoiser(Linear())
    x_T, ends = norm.ppf(u), transported(u, CENTRE, STD)
    flow = np.asarray(sample_adaptive(den, x_T[:, None], rtol=1e-10, atol=1e-10, eps=1e-8).x)[:, 0]
    run = lambda solver, n: np.asarray(sample(den, x_T[:, None], np.linspace(1, 0, n + 1), solver))[:, 0]
    x = x_T
    for t in np.linspace(1, 0, 51)[:-1]:
        x = x - speed(x, t, CENTRE, STD) / 50
    where, euler = "001, The Euler method vs. higher-order solvers", root_mean_square(x - ends)
    yield number(
        "two Gaussians, 50 steps of Euler: root mean square error", where, root_mean_square(run(solvers.euler(), 50) - flow), euler, digits=6
    )
    for name, solver in (("DPM-Solver++(2M)", solvers.dpm_solver_pp()), ("UniPC-3", solvers.unipc())):
        for n in (10, 20):
            found = run(solver, n)
            ours, exact = (root_mean_square(found - of) / euler for of in (flow, ends))
            says = {"text": "'same in 10-20'", "agrees": verdict(exact <= 1, f"{exact:.2f} times as large")} if n == 20 else {}
            yield number(f"{name}, {n} steps: error over that", where, ours, exact, digits=4, **says)
    for k in range(4, 20):
        found = sample_adaptive(den, x_T[:, None], rtol=2.0**-k, atol=2.0**-k, solver=diffrax.Dopri5())
        if root_mean_square(found.x[:, 0] - ends) <= euler:
            break
    nfe = float(found.nfe.mean())
    steps = (nfe - 1) / 6
    says = {"text": "15-20", "agrees": verdict(15 <= steps <= 20, f"{steps:.1f} of 6 evaluations each, {nfe:.0f} in all")}
    yield number("Dopri5 at the largest tolerance 2^-k with that error or less: mean steps", "001, Adaptive step sizes", steps, None, **says)


def schedules() -> Iterator[dict]:
    """The grids of "Step schedule matters", whose t = 1 is the data."""
    where, n = "001, Step schedule matters", 10
    theirs = np.linspace(0, 1, n + 1) ** 2
    more = verdict(theirs[-1] - theirs[-2] < theirs[1], "fewest there; near the data is 1 - (1 - u)^2")
    says = {"text": "'more steps near t = 1'", "agrees": more}
    yield number(f"linspace(0, 1, {n + 1})^2: its step at t = 1", where, np.diff(theirs)[-1], (2 * n - 1) / n**2, **says)
    ours = grids.with_zero(grids.quadratic(Linear(), n, 1e-9))
    yield number("samplers.grids.quadratic: its step at the data", where, ours[-3] - ours[-1], 1 / n**2, digits=4)
    rho, ramp = 7, np.linspace(0, 1, n + 1)
    theirs, ours = (80 ** (1 / rho) + ramp * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho, grids.karras(EDM(), n)
    yield number("Karras' schedule: largest difference to samplers.grids", where, np.abs(ours - theirs).max(), 0)
    for i, name, exact, text in ((0, "first", 80.0, "0 to 1"), (-1, "last", 0.002, None)):
        says = {"text": text, "agrees": text and verdict(exact == 0, "they are sigmas, from noise to data: times only of the path sigma = t")}
        yield number(f"Karras' schedule: its {name} 't'", where, ours[i], exact, **says)
    guided = 2 * solvers.euler()(Linear(), grids.uniform(Linear(), 28)).nfe
    yield number("evaluations of 28 steps with guidance", "001, complete lifecycle", guided, 56, "56")
