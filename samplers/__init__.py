"""Samplers of any `sde_lib.Denoiser`: tables of a fixed grid, predictor-correctors, diffrax for all that is adaptive, the log-likelihood; and of a
`sde_lib.FlowMap`: jumps."""

from samplers import grids, operators, solvers
from samplers.adaptive import Solution, encode, sample_adaptive, sample_sde
from samplers.bound import VariationalBound, variational_bound
from samplers.few_step import jumps
from samplers.gits import gits
from samplers.guidance import autoguidance, classifier_free, classifier_guidance, rectified_cfg
from samplers.inverse import consistent, dps, moment_matching, pigdm, replacement
from samplers.latent import slerp
from samplers.likelihood import LogLikelihood, log_likelihood
from samplers.operators import LinearOperator
from samplers.predictor_corrector import Corrector, annealed_langevin, langevin, predictor_corrector
from samplers.table import Row, Table, sample, stack
from samplers.thresholding import threshold

__all__ = [
    "Corrector", "LinearOperator", "LogLikelihood", "Row", "Solution", "Table", "annealed_langevin", "autoguidance", "classifier_free",
    "classifier_guidance", "consistent", "dps", "encode", "gits", "grids", "jumps", "langevin", "log_likelihood", "moment_matching", "operators",
    "pigdm", "predictor_corrector", "rectified_cfg", "replacement", "sample", "sample_adaptive", "sample_sde", "slerp", "solvers", "stack",
    "threshold", "VariationalBound", "variational_bound",
]  # fmt: skip
