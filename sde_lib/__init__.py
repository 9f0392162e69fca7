"""SDEs and paths, the prediction plane, discrete-time forms and the exact oracle. Time: t = 0 is the data, t = T the prior."""

from sde_lib.denoiser import PLANE, Denoiser, plane_point
from sde_lib.discrete import DDPM, NCSN, geometric_sigmas, linear_betas
from sde_lib.flow_map import FlowMap
from sde_lib.fokker_planck import Process, fokker_planck, forward_process, reverse_process
from sde_lib.noise import example_keys, normal
from sde_lib.oracle import GaussianMixture
from sde_lib.paths import EDM, OU, VE, VP, Cosine, Linear, SubVP, Trig
from sde_lib.sde import SDE

__all__ = [
    "DDPM", "EDM", "FlowMap", "NCSN", "OU", "PLANE", "Process", "SDE", "VE", "VP", "Cosine", "Denoiser", "GaussianMixture", "Linear", "SubVP",
    "Trig", "example_keys", "fokker_planck", "forward_process", "geometric_sigmas", "linear_betas", "normal", "plane_point", "reverse_process",
]  # fmt: skip
