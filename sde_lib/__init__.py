"""SDEs and paths, the prediction plane, discrete-time forms and the exact oracle. Time: t = 0 is the data, t = T the prior."""

from sde_lib.denoiser import PLANE, Denoiser, plane_point
from sde_lib.discrete import DDPM, NCSN, geometric_sigmas, linear_betas
from sde_lib.flow_map import FlowMap
from sde_lib.noise import example_keys, normal
from sde_lib.oracle import GaussianMixture
from sde_lib.paths import EDM, OU, VE, VP, Cosine, Linear, SubVP, Trig
from sde_lib.sde import SDE

__all__ = [
    "DDPM", "EDM", "FlowMap", "NCSN", "OU", "PLANE", "SDE", "VE", "VP", "Cosine", "Denoiser", "GaussianMixture", "Linear", "SubVP", "Trig",
    "example_keys", "geometric_sigmas", "linear_betas", "normal", "plane_point",
]  # fmt: skip
