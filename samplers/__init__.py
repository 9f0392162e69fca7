"""Samplers of any `sde_lib.Denoiser`: fixed-grid tables and their executor, diffrax for all that is adaptive, and the log-likelihood."""

from samplers import grids, operators, solvers
from samplers.adaptive import Solution, encode, sample_adaptive, sample_sde
from samplers.bound import VariationalBound, variational_bound
from samplers.gits import gits
from samplers.guidance import classifier_free
from samplers.inverse import consistent, dps, moment_matching, pigdm, replacement
from samplers.likelihood import LogLikelihood, log_likelihood
from samplers.predictor_corrector import Corrector, annealed_langevin, langevin, predictor_corrector
from samplers.operators import LinearOperator
from samplers.table import Row, Table, sample, stack
from samplers.thresholding import threshold

__all__ = [
    "LinearOperator", "LogLikelihood", "Row", "Solution", "Table", "classifier_free", "consistent", "dps", "encode", "gits", "grids",
    "log_likelihood", "moment_matching", "operators", "pigdm", "replacement", "sample", "sample_adaptive", "sample_sde", "solvers", "stack",
    "threshold", "VariationalBound", "variational_bound",
]  # fmt: skip
