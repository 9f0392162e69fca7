"""Solvers by family. Each is a function of its options that returns a solver, (sde, times) -> Table; see `samplers.table`."""

from samplers.solvers.exponential import ddim, dpm_solver_pp
from samplers.solvers.runge_kutta import euler, heun
from samplers.solvers.stochastic import ancestral, euler_maruyama, reverse_diffusion

__all__ = ["ancestral", "ddim", "dpm_solver_pp", "euler", "euler_maruyama", "heun", "reverse_diffusion"]
