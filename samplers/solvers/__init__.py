"""Solvers by family. Each is a function of its options that returns a solver, (sde, times) -> Table; see `samplers.table`."""

import importlib
import inspect
import pkgutil

from samplers.solvers.adams import adams_bashforth, deis, ipndm, lms, pndm
from samplers.solvers.combine import afs, restart, then
from samplers.solvers.exponential import ddim, dpm_solver, dpm_solver_pp, singlestep_orders, unipc
from samplers.solvers.named import named
from samplers.solvers.runge_kutta import HEUN, KUTTA3, MIDPOINT, RK4, Tableau, euler, heun, midpoint, rk4, runge_kutta
from samplers.solvers.sa import sa_solver
from samplers.solvers.stochastic import ancestral, edm, euler_maruyama, probability_flow, reverse_diffusion, sde_dpm_solver, sde_dpm_solver_pp
from samplers.solvers.two_stage import dpm_2_ancestral, dpm_solver_pp_2s_ancestral, dpm_solver_pp_sde
from samplers.table import Solver

_FAMILIES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]


def _makes_solver(function) -> bool:
    """Whether it is a function of options that returns a solver."""
    return inspect.isfunction(function) and inspect.signature(function).return_annotation is Solver


def _complete(function) -> bool:
    """Whether it gives a solver without being told more."""
    told = inspect.signature(function)
    return _makes_solver(function) and all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in told.parameters.values())


# by name, each with the defaults of its paper for all options: whatever function of a file of this folder gives a Solver without being told more
SOLVERS = {
    name: named(function)
    for family in _FAMILIES
    for name, function in sorted(vars(family).items())
    if inspect.isfunction(function) and function.__module__ == family.__name__ and _complete(function)
}
globals().update({name: named(function) for name, function in list(globals().items()) if _makes_solver(function)})

__all__ = [
    "HEUN", "KUTTA3", "MIDPOINT", "RK4", "SOLVERS", "Tableau", "adams_bashforth", "afs", "ancestral", "ddim", "deis", "dpm_2_ancestral", "dpm_solver",
    "dpm_solver_pp", "dpm_solver_pp_2s_ancestral", "dpm_solver_pp_sde",
    "edm", "euler", "euler_maruyama", "heun", "ipndm", "lms", "midpoint", "pndm", "probability_flow", "restart", "reverse_diffusion", "rk4",
    "runge_kutta", "sa_solver", "sde_dpm_solver", "sde_dpm_solver_pp", "singlestep_orders", "then", "unipc",
]  # fmt: skip
