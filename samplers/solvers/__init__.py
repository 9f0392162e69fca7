"""Solvers by family. Each is a function of its options that returns a solver, (sde, times) -> Table; see `samplers.table`."""

from samplers.solvers.adams import adams_bashforth, deis, ipndm, lms, pndm
from samplers.solvers.combine import afs, restart, then
from samplers.solvers.exponential import ddim, dpm_solver, dpm_solver_pp, singlestep_orders, unipc
from samplers.solvers.runge_kutta import HEUN, KUTTA3, MIDPOINT, RK4, Tableau, euler, heun, midpoint, rk4, runge_kutta
from samplers.solvers.stochastic import ancestral, edm, euler_maruyama, probability_flow, reverse_diffusion, sde_dpm_solver, sde_dpm_solver_pp

# by name, each with the defaults of its paper for all options
SOLVERS = {
    solver.__name__: solver
    for solver in (
        ancestral, ddim, deis, dpm_solver, dpm_solver_pp, edm, euler, euler_maruyama, heun, ipndm, lms, midpoint, pndm, probability_flow, restart,
        reverse_diffusion, rk4, sde_dpm_solver, sde_dpm_solver_pp, unipc,
    )
}  # fmt: skip

__all__ = [
    "HEUN", "KUTTA3", "MIDPOINT", "RK4", "SOLVERS", "Tableau", "adams_bashforth", "afs", "ancestral", "ddim", "deis", "dpm_solver", "dpm_solver_pp",
    "edm", "euler", "euler_maruyama", "heun", "ipndm", "lms", "midpoint", "pndm", "probability_flow", "restart", "reverse_diffusion", "rk4",
    "runge_kutta", "sde_dpm_solver", "sde_dpm_solver_pp", "singlestep_orders", "then", "unipc",
]  # fmt: skip
