"""The probability-flow ODE and the reverse SDE by diffrax: any solver, step-size controller and Brownian path, each example with its own steps.

Examples are solved under `vmap`, one step sequence each, so that no result depends on its batch-mates. The ODE is integrated in t; the SDE forwards
in s = T - t (stochastic Runge-Kutta methods of diffrax 0.7 are wrong for negative steps).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from samplers.checks import check_denoiser, checked
from samplers.solvers.steps import posterior
from samplers.table import check_times
from sde_lib.brief import results
from sde_lib.denoiser import Denoiser
from sde_lib.noise import example_keys, normal

MAX_STEPS = 16384


class Solution(NamedTuple):
    """x: the result. nfe: network evaluations of each example. success: False where the solve needed more than the allowed steps; x is NaN there.

    error: of `encode`, the largest error of a coordinate of x, estimated; None where it is not. A tolerance bounds the error
    of a step, and the whole path may be off by a hundred times as much."""

    x: Float[Array, "b ..."]
    nfe: Int[Array, " b"]
    success: Bool[Array, " b"]
    error: Float[Array, " b"] | None = None
    __repr__ = results


def per_example(den: Denoiser, fn: Callable, *args):
    """vmap over examples of fn(denoiser of one example with a batch of 1, *args of the example)."""
    one = lambda cond, *args: fn(replace(den, cond=jax.tree.map(lambda c: c[None], cond)), *args)
    return jax.vmap(one)(den.cond, *args)


def evaluations(solver, steps):
    """Evaluations that a diffrax solver makes in `steps` steps, rejected ones included: one a stage (one a step where there are no stages), less
    the first stage of each step but the first where it is the last stage of the step before."""
    tableau = getattr(solver, "tableau", None)
    stages = 1 if tableau is None else len(tableau.c) + 1
    unseen = getattr(tableau, "ignore_stage_f", None)  # stages of a stochastic method that need the diffusion only
    stages -= 0 if unseen is None else int(np.sum(unseen))
    reused = bool(getattr(tableau, "fsal", False))
    first = reused or isinstance(solver, diffrax.ReversibleHeun)  # which evaluates at its start once more
    return steps * (stages - reused) + first


def solve_ode(field: Callable, y, t0, t1, rtol, atol, solver, adjoint, ts=None):
    """Integrate dy/dt = field(t, y) of one example adaptively: y at t1, or at each of `ts` (NaN on failure), evaluations, success."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        solver,
        t0,
        t1,
        dt0=0.01 * (t1 - t0),
        y0=y,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        saveat=diffrax.SaveAt(t1=True) if ts is None else diffrax.SaveAt(ts=ts),
        adjoint=adjoint,
        max_steps=MAX_STEPS,
        throw=False,
    )
    success = solution.result == diffrax.RESULTS.successful
    y = jax.tree.map(lambda y: jnp.where(success, y[-1] if ts is None else y, jnp.nan), solution.ys)
    return y, evaluations(solver, solution.stats["num_steps"]), success


def check_tolerances(rtol: float, atol: float, solver) -> None:
    """Raise ValueError for tolerances or solvers that cannot be meant."""
    if not isinstance(solver, diffrax.AbstractERK):
        raise ValueError(f"solver {solver!r:.60}: expected an explicit Runge-Kutta method of diffrax, e.g. diffrax.Tsit5()")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, jax.core.Tracer) and not 0 < value < 1:
            raise ValueError(f"{name} = {value}: expected a tolerance between 0 and 1")


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _without_derivative(arrays, what: str):
    return arrays


@_without_derivative.defjvp
def _refuse_derivative(what, arrays, tangents):
    raise ValueError(
        f"a derivative of {what} without an adjoint: pass adjoint=diffrax.RecursiveCheckpointAdjoint() for jax.grad, "
        "or adjoint=diffrax.ForwardMode() for jax.jvp"
    )


def without_derivative(tree, what: str):
    """The tree as it is; a derivative that is taken through it is refused in one line, which names `what`."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_without_derivative(arrays, what), rest)


def stopped(tree):
    """The tree with derivatives stopped at its arrays."""
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_inexact_array(a) else a, tree)


def check_sde_solver(solver) -> None:
    """Raise ValueError for anything but a solver of diffrax."""
    if not isinstance(solver, diffrax.AbstractSolver):
        raise ValueError(f"solver = {solver!r:.60}: expected a solver of diffrax, e.g. diffrax.Euler(); tables are samplers.sample's")


@eqx.filter_jit
def _flow(den, x, t0, t1, rtol, atol, solver, adjoint):
    def one(den, x):
        field = lambda t, x: den.velocity(x[None], t)[0]
        return solve_ode(field, x, t0, t1, rtol, atol, solver, adjoint)

    return Solution(*per_example(den, one, x))


def sample_adaptive(
    den: Denoiser,
    x_T: Float[Array, "b ..."],
    rtol=1e-5,
    atol=1e-5,
    eps: float | None = None,
    solver=diffrax.Tsit5(),
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> Solution:
    """Carry x_T [B, ...] to t = eps (default `den.sde.eps`) along the probability-flow ODE (2011.13456, eq. 13).

    Returns x [B, ...], nfe [B] and success [B]; `success` is False, and x NaN, where more than MAX_STEPS steps were needed.
    adjoint: None, or a diffrax adjoint for derivatives of x in x_T and in parameters, e.g.
    `diffrax.RecursiveCheckpointAdjoint()` for `jax.grad` and `diffrax.ForwardMode()` for `jax.jvp`.
    Raises ValueError for impossible tolerances, times and solvers, and for a derivative without an adjoint.
    """
    check_denoiser(den, "sample_adaptive")
    x_T = checked(den, x_T, "x_T")
    return _adaptive(den, x_T, den.sde.T, check_eps(den, eps), rtol, atol, solver, adjoint, "sample_adaptive")


def encode(
    den: Denoiser,
    x: Float[Array, "b ..."],
    rtol=1e-5,
    atol=1e-5,
    eps: float | None = None,
    solver=diffrax.Tsit5(),
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> Solution:
    """Carry data x [B, ...], taken as x at t = eps, to its latent x_T: the inverse of `sample_adaptive`.

    Its `error` is how far the latent is from that of a solve with ten times the tolerances, whose evaluations are counted
    in `nfe`. The rest is as in `sample_adaptive`.
    """
    check_denoiser(den, "encode")
    x = checked(den, x, "x")
    ends = check_eps(den, eps), den.sde.T
    solution = _adaptive(den, x, *ends, rtol, atol, solver, adjoint, "encode")
    looser = _adaptive(stopped(den), stopped(x), *ends, *(jnp.minimum(10 * c, 0.5) for c in (rtol, atol)), solver, None, "encode")
    error = jnp.max(jnp.abs(stopped(solution.x) - looser.x).reshape(len(looser.x), -1), -1)
    return Solution(solution.x, solution.nfe + looser.nfe, solution.success & looser.success, error)


def check_eps(den: Denoiser, eps: float | None) -> float:
    """The time nearest to the data: `eps`, by default that of the path. Raises ValueError if it is not between 0 and T."""
    eps = den.sde.eps if eps is None else eps
    if not 0 < eps < den.sde.T:
        raise ValueError(f"eps = {eps}: expected 0 < eps < T = {den.sde.T}")
    return eps


def _traced(tree):
    """A denoiser, or eta, with its numbers, such as the strength of guidance, as arrays: `filter_jit` would compile anew for each."""
    return jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, float) else a, tree)


def _adaptive(den, x, t0, t1, rtol, atol, solver, adjoint, what: str):
    check_tolerances(rtol, atol, solver)
    den = _traced(den)
    if adjoint is None:
        (den, x), adjoint = without_derivative((den, x), what), diffrax.ForwardMode()
    return _flow(den, x, *(jnp.asarray(c, x.dtype) for c in (t0, t1, rtol, atol)), solver, adjoint)


def _levy_area(solver):
    """The least Brownian increment, with or without Levy area, that the solver accepts."""
    least = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    areas = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
    return next(area for area in areas if issubclass(area, least))


@eqx.filter_jit
def _reverse_sde(den, x, s, keys, solver, controller, eta):
    """x at s[0] to s[-1], with s = T - t increasing, on the grid s or, given a controller, adaptively."""
    sde, area = den.sde, _levy_area(solver)
    strength = eta if callable(eta) else lambda t: eta

    def one(den, x, key):
        def drift(s, x, args):
            t = sde.T - s
            return -sde.reverse_drift(x[None], t, den.score(x[None], t), strength(t))[0]

        def diffusion(s, x, args):
            t = sde.T - s
            return lineax.DiagonalLinearOperator(jnp.broadcast_to(strength(t) * sde.diffusion(t), x.shape).astype(x.dtype))

        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        if controller is None:
            path = diffrax.UnsafeBrownianPath(shape, key, levy_area=area)
        else:
            path = diffrax.VirtualBrownianTree(s[0], s[-1], 1e-3 * jnp.min(jnp.diff(s)), shape, key, levy_area=area)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
            solver,
            s[0],
            s[-1],
            dt0=None if controller is None else s[1] - s[0],
            y0=x,
            stepsize_controller=diffrax.StepTo(s) if controller is None else controller,
            adjoint=diffrax.ForwardMode(),
            max_steps=len(s) - 1 if controller is None else MAX_STEPS,
            throw=False,
        )
        success = solution.result == diffrax.RESULTS.successful
        return jnp.where(success, solution.ys[-1], jnp.nan), evaluations(solver, solution.stats["num_steps"]), success

    return Solution(*per_example(den, one, x, keys))


@jax.jit
def _leave_prior(den, x, t, coefficients, keys):
    a, b, std = (jnp.asarray(c, x.dtype) for c in coefficients)
    noise = normal(jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys), x.shape, x.dtype)
    return a * x + b * den.data(x, t) + std * noise


def sample_sde(
    den: Denoiser,
    x_T: Float[Array, "b ..."],
    times: Float[np.ndarray, " n"],
    key,
    solver=diffrax.Euler(),
    controller=None,
    eta: float | Callable = 1.0,
) -> Solution:
    """Carry x_T [B, ...] from times[0] to times[-1] along the reverse SDE (2011.13456, eq. 6) with any diffrax SDE solver.

    eta: strength of the noise as in `SDE.reverse_drift`, a number or a function of t (a JAX scalar; `samplers.strengths`).
    solver: of the Ito SDE; the noise is additive, so that Stratonovich solvers agree. controller: None steps from time to time of the grid on
    an `UnsafeBrownianPath`; a diffrax controller steps adaptively, beginning with the grid's first step, on a `VirtualBrownianTree` (slow).
    key: a single key or one per example. A grid from alpha = 0, where drift and diffusion are infinite, begins with one ancestral step, exact there.
    Returns x, nfe (see `evaluations`) and success. Raises ValueError for bad times and a coupled denoiser.
    """
    check_denoiser(den, "sample_sde")
    x_T = checked(den, x_T, "x_T", key)
    check_sde_solver(solver)
    den.check_uncoupled("the reverse SDE")
    times, x = check_times(den.sde, times), x_T
    keys, spent = example_keys(key, x.shape[0]), 0
    if den.sde.alpha(times[0]) == 0:
        x, spent = _leave_prior(den, x, times[0], posterior(den.sde, times[0], times[1]), keys), 1
        times = times[1:]
        if len(times) == 1:
            return Solution(x, jnp.ones(x.shape[0], int), jnp.ones(x.shape[0], bool))
    path_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
    solution = _reverse_sde(_traced(den), x, np.asarray(den.sde.T - times, x.dtype), path_keys, solver, controller, _traced(eta))
    return solution._replace(nfe=solution.nfe + spent)
