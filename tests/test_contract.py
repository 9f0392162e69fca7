"""The public interface of the design, as printed: eagerly, under jit, and in float64. Outside checks import these names."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import encode, grids, log_likelihood, sample, sample_adaptive, solvers
from sde_lib import EDM, OU, SDE, VE, VP, Cosine, Denoiser, GaussianMixture, Linear, SubVP, Trig

MEANS, STDS, WEIGHTS = np.array([[-1.0, 0.0], [1.0, 0.5]]), np.array([0.2, 0.3]), np.array([1.0, 2.0])


def test_all_paths_are_there():
    for sde in (VP(beta_min=0.1, beta_max=20.0), SubVP(), VE(), EDM(), OU(), Linear(), Cosine(), Trig()):
        assert sde.T > 0


# every path in float32, in float64 a diffusion and a flow; the slow ones are those whose prior or time another one has
FAST = (VP,)
CASES = [(cls, jnp.float32) for cls in SDE.__subclasses__()] + [(cls, jnp.float64) for cls in (VP, Linear)]
fast = lambda cls, dtype: cls in FAST and dtype == jnp.float32
CASES = [pytest.param(c(), d, marks=() if fast(c, d) else pytest.mark.slow, id=f"{c.__name__}-{d.__name__}") for c, d in CASES]


@pytest.mark.parametrize("sde, dtype", CASES)
def test_interface(sde, dtype):
    """Shapes, precision and finiteness of everything that the contract names, in jit and out of it."""
    with jax.enable_x64(dtype == jnp.float64):
        key = jax.random.key(0)
        gm = GaussianMixture(MEANS.astype(dtype), STDS, WEIGHTS)
        den = gm.denoiser(sde)
        assert isinstance(den, Denoiser)

        def use(x0, t):
            scalars = (sde.alpha(t), sde.sigma(t), sde.log_snr(t), sde.time(sde.log_snr(t)), sde.diffusion(t))
            mean, std = sde.marginal(x0, t)
            x_t, noise = sde.perturb(key, x0, t)
            predictions = tuple(getattr(den, name)(x_t, t) for name in ("data", "noise", "score", "velocity", "v"))
            densities = (gm.log_prob(x0), gm.marginal_log_prob(sde, x_t, t), sde.prior_log_prob(x_t))
            return scalars, (mean, sde.drift(x_t, t), x_t, noise, *predictions), (std, *densities)

        x0 = gm.sample(key, 3)
        for t in (jnp.asarray(0.3 * sde.T, dtype), jnp.full(3, 0.3 * sde.T, dtype)):
            jitted = jax.jit(use)(x0, t)
            assert all(a.dtype == dtype and np.all(np.isfinite(a)) for a in jax.tree.leaves(jitted))
            for group, shape in zip(jitted, (t.shape, (3, 2), (3,))):
                assert all(a.shape == shape for a in group)
        if dtype == jnp.float32 and isinstance(sde, VP | Linear):  # op by op, which is slow, on two paths
            for a, b in zip(jax.tree.leaves(use(x0, t)), jax.tree.leaves(jitted)):
                assert a.dtype == dtype
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

        x_T = sde.prior_sample(key, (3, 2), dtype)
        times = grids.karras(sde, 6)
        solver = solvers.dpm_solver_pp(order=2)
        assert solver(sde, times).nfe == 6
        draw = lambda x: sample(den, x, times, solver, key=None)
        score = lambda x: log_likelihood(den, x, divergence="hutchinson", key=key, rtol=1e-3, atol=1e-3)
        for fn in (draw, jax.jit(draw)):
            assert fn(x_T).shape == (3, 2) and fn(x_T).dtype == dtype
        result = sample_adaptive(den, x_T, rtol=1e-3, atol=1e-3)
        assert result.x.dtype == dtype and result.nfe.shape == (3,)
        assert encode(den, result.x, rtol=1e-3, atol=1e-3).x.shape == (3, 2)
        result = jax.jit(score)(gm.sample(key, 3))
        assert result.log_prob.shape == result.nfe.shape == result.stderr.shape == (3,) and result.latent.shape == (3, 2)
        assert result.log_prob.dtype == dtype and np.all(np.isfinite(result.log_prob))


def test_readme_library_example():
    code = re.search(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)[1]
    scope = {}
    exec(code, scope)
    assert scope["x_0"].shape == (64, 2) and np.all(np.isfinite(scope["result"].log_prob))
    p, h = np.asarray(scope["p"], np.float64), scope["x"][1] - scope["x"][0]
    exact = np.exp(scope["gm"].marginal_log_prob(scope["sde"], scope["points"], 0.01)).reshape(p.shape)
    assert p.min() >= 0 and abs(p - exact).sum() * h**2 < 0.1
