"""Samplers of any `sde_lib.Denoiser`: tables of a fixed grid, predictor-correctors, diffrax for all that is adaptive, the log-likelihood."""

from samplers import grids, solvers
from samplers.adaptive import Solution, encode, sample_adaptive, sample_sde
from samplers.bound import VariationalBound, variational_bound
from samplers.gits import gits
from samplers.guidance import classifier_free
from samplers.likelihood import LogLikelihood, log_likelihood
from samplers.predictor_corrector import Corrector, annealed_langevin, langevin, predictor_corrector
from samplers.table import Row, Table, sample, stack
from samplers.thresholding import threshold

__all__ = [
    "Corrector", "LogLikelihood", "Row", "Solution", "Table", "annealed_langevin", "classifier_free", "encode", "gits", "grids", "langevin",
    "log_likelihood", "predictor_corrector", "sample", "sample_adaptive", "sample_sde", "solvers", "stack", "threshold", "VariationalBound",
    "variational_bound",
]  # fmt: skip
