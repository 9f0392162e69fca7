"""Samplers of any `sde_lib.Denoiser`: fixed-grid tables and their executor, diffrax for all that is adaptive, and the log-likelihood."""

from samplers import grids, solvers
from samplers.adaptive import Solution, encode, sample_adaptive, sample_sde
from samplers.bound import VariationalBound, variational_bound
from samplers.gits import gits
from samplers.guidance import classifier_free
from samplers.latent import slerp
from samplers.likelihood import LogLikelihood, log_likelihood
from samplers.table import Row, Table, sample, stack
from samplers.thresholding import threshold

__all__ = [
    "LogLikelihood", "Row", "Solution", "Table", "classifier_free", "encode", "gits", "grids", "log_likelihood", "sample", "sample_adaptive",
    "sample_sde", "slerp", "solvers", "stack", "threshold", "VariationalBound", "variational_bound",
]  # fmt: skip
