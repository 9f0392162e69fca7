"""Inversion by tables: `sample` on increasing times carries data to their latents."""

import jax
import numpy as np
import pytest
from affine import exact_flow, propagate, slope_of_error

from samplers import grids, sample, solvers
from sde_lib import EDM, GaussianMixture, Linear, Trig

ENCODERS = {
    "ddim": (solvers.ddim(), 1),
    "euler": (solvers.euler("sigma"), 1),
    "heun": (solvers.heun("sigma"), 2),
    "rk4": (solvers.rk4("log_snr"), 4),
    "edm": (solvers.edm(), 2),
    "dpm_solver 2": (solvers.dpm_solver(2), 2),
    "dpm_solver_pp 2M": (solvers.dpm_solver_pp(), 2),
    "dpm_solver_pp 3S": (solvers.dpm_solver_pp(3, "singlestep"), 3),
    "unipc 2": (solvers.unipc(2, lower_order_final=False), 2),
    "deis": (solvers.deis(1, "rhoab"), 2),
    "ipndm": (solvers.ipndm(), 2),
    "pndm": (solvers.pndm("heun"), 2),
    "sa_solver": (solvers.sa_solver(2, 2, 0.0, lower_order_final=False), 2),
    "probability_flow": (solvers.probability_flow(), 1),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_order_of_encoding(name):
    """From sigma = 0.05 to 20 on three Gaussians the error falls with the order of the solver (multistep ones start with lower orders)."""
    solver, order = ENCODERS[name]
    slope, error = slope_of_error(EDM(), solver, 0.05, 20.0, ns=(100, 200))
    assert slope >= order - 0.15, (slope, error)
    assert slope <= order + 1.2  # control: an exact result would have no slope


@pytest.mark.parametrize("sde", [Linear(), pytest.param(Trig(), marks=pytest.mark.slow)], ids=["Linear", "Trig"])
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "probability_flow"])  # too coarse near alpha = 0
def test_encoding_ends_where_alpha_is_zero(name, sde):
    """At T the latent of a Gaussian is the standardised variable times sigma(T); the last step is DDIM's."""
    times = grids.cosine(sde, 200)[::-1]
    table, x = ENCODERS[name][0](sde, times), 0.4 * sde.alpha(times[0]) + 0.5
    want = exact_flow(sde, 0.6, 0.4, x, sde.T, times[0])
    assert propagate(table, sde, 0.6, 0.4, x_T=x) == pytest.approx(want, abs=0.03 if ENCODERS[name][1] == 1 else 2e-3)


def test_ddim_inversion_is_the_published_step(mixture, x64):
    """Diffusers' DDIM inversion: x_s = alpha_s D(x_t, t) + sigma_s eps(x_t, t), and there and back again is the identity as steps become short."""
    sde = EDM()
    den = GaussianMixture(*(np.asarray(c, np.float64) for c in (mixture.means, mixture.stds, mixture.weights))).denoiser(sde)
    x = jax.random.normal(jax.random.key(0), (3, 2), np.float64)
    times = np.array([0.1, 0.5, 3.0])
    want = x
    for t, s in zip(times[:-1], times[1:]):
        want = sde.alpha(s) * den.data(want, t) + sde.sigma(s) * den.noise(want, t)
    np.testing.assert_allclose(sample(den, x, times, solvers.ddim()), want, rtol=1e-10)
    returned = []
    for n in (32, 64):
        grid = grids.karras(sde, n, eps=0.1)
        latent = sample(den, x, grid[::-1], solvers.dpm_solver_pp(2, lower_order_final=False))
        returned.append(np.abs(sample(den, latent, grid, solvers.dpm_solver_pp(2, lower_order_final=False)) - x).max())
    assert returned[1] < 0.02 and np.log2(returned[0] / returned[1]) > 1.5, returned


def test_mistakes_are_named(mixture):
    den, x = mixture.denoiser(EDM()), np.ones((2, 2))
    up = grids.karras(EDM(), 4)[::-1]
    stochastic = {"ancestral", "euler_maruyama", "reverse_diffusion", "sde_dpm_solver", "sde_dpm_solver_pp", "sa_solver", "restart"}
    stochastic |= {"dpm_2_ancestral", "dpm_solver_pp_2s_ancestral", "dpm_solver_pp_sde"}
    refused = {name: solvers.SOLVERS[name]() for name in stochastic}
    refused |= {"churn": solvers.edm(1.0), "eta": solvers.ddim(0.5), "first step": solvers.afs(solvers.ipndm())}
    for solver in refused.values():
        with pytest.raises(ValueError, match="times increase, from 0.002 to 80: only a deterministic solver|times increase.*first step"):
            sample(den, x, up, solver, jax.random.key(0))
    with pytest.raises(ValueError, match="where sigma = 0: expected a start above it, such as 0.002"):
        sample(den, x, np.append(0.0, up), solvers.ddim())
    with pytest.raises(ValueError, match="decrease at every step"):
        sample(den, x, [1.0, 2.0, 1.5], solvers.ddim())
