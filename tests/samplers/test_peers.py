"""Agreement with the released schedulers of diffusers: on an exact denoiser in float64, and with the sums that diffusers' own tests publish.

Left out, their update being another one: DPMSolverSinglestepScheduler at order 3 with solver_type "midpoint" (its inner stage has the second-order
step's w_1/2 where the authors' code and ours have w_2; "heun" has w_2, and agrees), PNDMScheduler with v-prediction (it extrapolates v, not eps).
"""

import dataclasses
import functools
import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from samplers import Row, grids, sample, solvers, stack
from samplers.solvers.steps import ratio
from sde_lib import DDPM, EDM, Denoiser, GaussianMixture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of diffusers

CHAIN = DDPM()
TYPES = {"midpoint": "dpmsolver", "heun": "taylor"}  # diffusers' solver_type: ours
DPM = {"dpmsolver++": solvers.dpm_solver_pp, "dpmsolver": solvers.dpm_solver}
MULTISTEP, SINGLESTEP, UNIPC = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"


def solver_config(order, lower=False, final="sigma_min", **options):
    return {"solver_order": order, "lower_order_final": lower, "final_sigmas_type": final, **options}


# their scheduler, its config, our solver
PEERS = {
    **{
        f"multistep-{algorithm}-{order}-{kind}{'-lower' * lower}": (
            MULTISTEP,
            solver_config(order, lower, algorithm_type=algorithm, solver_type=kind),
            DPM[algorithm](order, "multistep", solver_type=TYPES[kind], lower_order_final=15 if lower else False),
        )
        for algorithm in DPM
        for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun"))
        for lower in (False, True)
    },
    **{
        f"multistep-dpmsolver++-{order}-zero": (MULTISTEP, solver_config(order, final="zero"), solvers.dpm_solver_pp(order, lower_order_final=False))
        for order in (1, 2, 3)
    },
    **{
        f"singlestep-{algorithm}-{order}-{kind}": (
            SINGLESTEP,
            solver_config(order, order == 3, algorithm_type=algorithm, solver_type=kind),
            DPM[algorithm](order, "singlestep", solver_type=TYPES[kind], inner="grid"),
        )
        for algorithm in DPM
        for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "heun"))
    },
    **{
        f"unipc-{order}-{variant}-{prediction}{'-lower' * lower}": (
            UNIPC,
            solver_config(order, lower, solver_type=variant, predict_x0=prediction == "data"),
            solvers.unipc(order, variant, prediction, lower_order_final=lower),
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
        for prediction in ("data", "noise")
        for lower in (False, True)
    },
    "unipc-3-zero": (UNIPC, solver_config(3, True, "zero"), solvers.unipc(3)),
    **{
        f"deis-{order}": ("DEISMultistepScheduler", {"solver_order": order, "lower_order_final": False}, solvers.adams_bashforth(order, "log_snr"))
        for order in (1, 2, 3)
    },
    "ddim": ("DDIMScheduler", {"clip_sample": False}, solvers.ddim()),
    "ddim-alpha_0": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, solvers.ddim()),
    "pndm": ("PNDMScheduler", {"set_alpha_to_one": True}, solvers.pndm("runge_kutta")),
    "pndm-alpha_0": ("PNDMScheduler", {}, solvers.pndm("runge_kutta")),
    "plms": ("PNDMScheduler", {"set_alpha_to_one": True, "skip_prk_steps": True}, solvers.pndm("heun")),
    "plms-alpha_0": ("PNDMScheduler", {"skip_prk_steps": True}, solvers.pndm("heun")),
    "euler": ("EulerDiscreteScheduler", {}, solvers.ddim()),
    "heun": ("HeunDiscreteScheduler", {}, solvers.heun("sigma")),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, solvers.dpm_solver(2)),
    "lms": ("LMSDiscreteScheduler", {}, solvers.lms(4)),
}

# with 10 steps a last step of full order, to t = 0.001, amplifies the rounding of float32 (theirs likewise, to 4e-6 ... 4e-4)
AMPLIFYING = {"singlestep-dpmsolver-2-midpoint", "unipc-3-bh2-data", "unipc-3-bh1-noise", "unipc-3-bh2-noise"}

EARLY = lambda k: torch.tensor(0.8 if 200 <= k <= 800 else 0.0, dtype=torch.float64)  # tau of step k
# the same, and what `step` is given
STOCHASTIC = {
    **{
        f"sde-dpmsolver++-{order}-{kind}-{final}": (
            MULTISTEP,
            solver_config(order, True, final, algorithm_type="sde-dpmsolver++", solver_type=kind),
            solvers.sde_dpm_solver_pp(order, solver_type=TYPES[kind], lower_order_final=15),
            {},
        )
        for order in (1, 2)
        for kind in TYPES
        for final in ("sigma_min", "zero")
    },
    **{
        f"sde-dpmsolver-2-{kind}": (
            MULTISTEP,
            solver_config(2, algorithm_type="sde-dpmsolver", solver_type=kind),
            solvers.sde_dpm_solver(order=2, solver_type=TYPES[kind]),
            {},
        )
        for kind in TYPES
    },
    # in data prediction theirs has other coefficients at order 2, and lower orders are on the way to every higher one
    **{
        f"sa-{predictor}-{corrector}-{algorithm}": (
            "SASolverScheduler",
            {"predictor_order": predictor, "corrector_order": corrector, "algorithm_type": f"{algorithm}_prediction", "tau_func": EARLY},
            solvers.sa_solver(predictor, corrector, lambda t: EARLY(CHAIN.N * t - 1), 0.0, np.inf, algorithm),
            {},
        )
        for predictor, corrector, algorithm in ((1, 1, "data"), (1, 1, "noise"), (2, 2, "noise"), (3, 4, "noise"))
    },
    "sde-dpmsolver-1": (MULTISTEP, solver_config(1, algorithm_type="sde-dpmsolver"), solvers.sde_dpm_solver(), {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}, solvers.ancestral(), {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, solvers.ancestral(), {}),
    "ddpm-fixed_large": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, solvers.ancestral("forward"), {}),
    **{f"ddim-{eta}": ("DDIMScheduler", {"clip_sample": False}, solvers.ddim(eta), {"eta": eta}) for eta in (0.5, 1.0)},
}


@pytest.fixture
def double(monkeypatch, x64):
    """JAX in float64, and diffusers, which casts to float32 at places, too."""
    monkeypatch.setattr(torch, "float32", torch.float64)


@functools.cache
def oracle(sde, x64):
    """The exact denoiser of a fixed mixture, in the precision that JAX is in (`x64` keeps the two apart)."""
    rng = np.random.default_rng(0)
    rotations = np.linalg.qr(rng.normal(size=(5, 8, 8)))[0]
    return GaussianMixture(rng.normal(size=(5, 8)), rng.uniform(0.2, 0.6, (5, 8)), rng.uniform(0.5, 1.5, 5), rotations).denoiser(sde)


predict = functools.partial(jax.jit, static_argnames="target")(lambda den, target, x, t: den.predict(target, x, t))


def start(sde):
    return np.random.default_rng(1).normal(size=(16, 8)) * np.hypot(sde.alpha(sde.T), sde.sigma(sde.T))


def prepare(name, config, chain, n):
    """The scheduler of n steps with the chain's levels in float64, the times of its evaluations, and our grid. Their step k is our k + 1."""
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(n)
    time = lambda k: (np.asarray(k, np.float64) + 1) / chain.N
    times, alphas_cumprod = time(scheduler.timesteps), torch.tensor(chain.alpha(time(np.arange(chain.N))) ** 2)
    grid = time(scheduler._timesteps[::-1]) if name == "PNDMScheduler" else np.unique(times)[::-1]
    end = [0.0]
    if not scheduler.config.get("set_alpha_to_one", True):  # their last step is from the first level to itself
        scheduler.final_alpha_cumprod, end = alphas_cumprod[0], []
    scheduler.alphas_cumprod = alphas_cumprod
    if hasattr(scheduler, "sigmas_interpol"):  # the levels of the evaluations within steps
        grid = times[::2].copy()
        times[1::2] = chain.time(0.5 * (chain.log_snr(grid[1:]) + chain.log_snr(grid[:-1])))
        scheduler.sigmas_interpol = torch.tensor(np.append(ratio(chain, times), 0.0))
    if hasattr(scheduler, "sigmas"):
        end = [time(0)] if scheduler.sigmas[-1] > 0 else [0.0]
        levels = np.repeat(grid, 2)[1:] if scheduler.order == 2 else grid
        scheduler.sigmas = torch.tensor(ratio(chain, np.append(levels, end)))
    return scheduler, times, np.append(grid, end)


def run(scheduler, times, model, x, **options):
    """The last x of the scheduler from x, with model(input, t). k-diffusion's schedulers carry x/alpha and scale it for the model."""
    x = torch.from_numpy(x) / scheduler.scale_model_input(torch.ones(()), scheduler.timesteps[0])
    for k, t in zip(scheduler.timesteps, times):
        output = model(scheduler.scale_model_input(x, k).numpy(), t)
        x = scheduler.step(torch.from_numpy(np.array(output)), k, x, **options).prev_sample
    return x.numpy()


def assert_same(actual, expected, dtype, rtol):
    assert actual.dtype == dtype and expected.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=rtol if dtype == np.float64 else 0.0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("n", (10, 20))
@pytest.mark.parametrize("name", PEERS)
def test_exact_denoiser(name, n, double):
    peer, config, solver = PEERS[name]
    scheduler, times, grid = prepare(peer, config, CHAIN, n)
    den, x_T = oracle(CHAIN, True), start(CHAIN)
    expected = run(scheduler, times, lambda x, t: predict(den, "noise", x, t), x_T)
    assert_same(sample(den, x_T, grid, solver), expected, np.float64, 1e-8)
    with jax.enable_x64(False):
        assert_same(sample(oracle(CHAIN, False), x_T, grid, solver), expected, np.float32, 1e-4 if n == 10 and name in AMPLIFYING else 1e-5)


@pytest.mark.parametrize("n", (10, 20))
@pytest.mark.parametrize("name", STOCHASTIC)
def test_same_noise(name, n, double, monkeypatch):
    peer, config, solver, options = STOCHASTIC[name]
    scheduler, times, grid = prepare(peer, config, CHAIN, n)
    den, x_T, key = oracle(CHAIN, True), start(CHAIN), jax.random.key(2)
    noise_only = lambda sde, times: stack([Row(t, {0: 0.0}, {0: 0.0}, 1.0) for t in times[:-1]], "data")
    noise = iter(np.array(sample(den, x_T, grid, noise_only, key, path=True)[1:]))
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, **__: torch.from_numpy(next(noise)))
    expected = run(scheduler, times, lambda x, t: predict(den, "noise", x, t), x_T, **options)
    assert_same(sample(den, x_T, grid, solver, key), expected, np.float64, 1e-8)


EDM_PEERS = {
    "euler": ("EDMEulerScheduler", {}, solvers.ddim()),
    **{
        f"dpmsolver++-{order}-{kind}-{final}": (
            "EDMDPMSolverMultistepScheduler",
            solver_config(order, True, final, solver_type=kind),
            solvers.dpm_solver_pp(order, solver_type=TYPES[kind], lower_order_final=15),
        )
        for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"))
        for final in ("sigma_min", "zero")
    },
}


@pytest.mark.parametrize("n", (10, 20))
@pytest.mark.parametrize("name", EDM_PEERS)
def test_exact_denoiser_edm(name, n, double):
    peer, config, solver = EDM_PEERS[name]
    sde = EDM()
    grid = grids.karras(sde, n) if "sigma_min" in name else grids.with_zero(grids.karras(sde, n - 1))
    scheduler = getattr(diffusers, peer)(**config)
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.tensor(sde.sigma(grid))
    den, x_T = oracle(sde, True), start(sde)
    x = torch.from_numpy(x_T)
    for k, t in zip(scheduler.timesteps, grid):
        scheduler.scale_model_input(x, k)
        x = scheduler.step(torch.from_numpy(np.array(predict(den, "edm", x.numpy(), t))), k, x).prev_sample
    assert_same(sample(den, x_T, grid, solver), x.numpy(), np.float64, 1e-8)


# --- the published sums ---------------------------------------------------------------------------------------------------------------

V = {"prediction_type": "v_prediction"}


def euler_last(solver, euler):
    """diffusers' lower_order_final of order 2: `euler` takes the last step."""
    return lambda sde, times: solvers.then(solver, euler, times[-2])(sde, times)


def from_input(solver):
    """A solver of steps that are taken from the scaled input in place of x/alpha, as the loops of diffusers' k-diffusion tests do: each x counts
    alpha times."""

    def scaled(sde, times):
        table = solver(sde, times)
        alpha = [[sde.alpha(table.times[max(e - k, 0)]) for k in range(table.x.shape[1])] for e in range(table.nfe)]
        return dataclasses.replace(table, x=table.x * np.array(alpha))

    return scaled


# their scheduler and its config, our solver, then sum |x| (where published) and mean |x|
PUBLISHED = {
    "dpm": (MULTISTEP, solver_config(2), solvers.dpm_solver_pp(2, lower_order_final=False), None, 0.3301),
    "dpm-v": (MULTISTEP, solver_config(2, **V), solvers.dpm_solver_pp(2, lower_order_final=False), None, 0.2251),
    "singlestep": (SINGLESTEP, solver_config(2), solvers.dpm_solver_pp(2, "singlestep", inner="grid"), None, 0.2791),
    "singlestep-v": (SINGLESTEP, solver_config(2, **V), solvers.dpm_solver_pp(2, "singlestep", inner="grid"), None, 0.1453),
    "unipc": (UNIPC, solver_config(2, True), solvers.unipc(2), None, 0.2464),
    "unipc-v": (UNIPC, solver_config(2, True, **V), solvers.unipc(2), None, 0.1014),
    **{
        name: ("DEISMultistepScheduler", kind, euler_last(*(solvers.adams_bashforth(order, "log_snr") for order in (2, 1))), None, mean)
        for name, kind, mean in (("deis", {}, 0.23916), ("deis-v", V, 0.091))
    },
    "ddim": ("DDIMScheduler", {}, solvers.ddim(), 172.0067, 0.223967),  # its clip_sample clips nothing here
    "ddim-v": ("DDIMScheduler", V, solvers.ddim(), 52.5302, 0.0684),
    "ddim-one": ("DDIMScheduler", {"set_alpha_to_one": True, "beta_start": 0.01}, solvers.ddim(), 149.8295, 0.1951),
    "ddim-alpha_0": ("DDIMScheduler", {"set_alpha_to_one": False, "beta_start": 0.01}, solvers.ddim(), 149.0784, 0.1941),
    "pndm": ("PNDMScheduler", {}, solvers.pndm(), 198.1318, 0.2580),
    "pndm-one": ("PNDMScheduler", {"set_alpha_to_one": True, "beta_start": 0.01}, solvers.pndm(), 230.0399, 0.2995),
    "pndm-alpha_0": ("PNDMScheduler", {"set_alpha_to_one": False, "beta_start": 0.01}, solvers.pndm(), 186.9482, 0.2434),
    "euler": ("EulerDiscreteScheduler", {"num_train_timesteps": 1100}, from_input(solvers.euler("sigma")), 10.0807, 0.0131),
    "heun": ("HeunDiscreteScheduler", {"num_train_timesteps": 1100}, from_input(solvers.heun("sigma")), 0.1233, 0.0002),
    "kdpm2": ("KDPM2DiscreteScheduler", {"num_train_timesteps": 1100}, from_input(solvers.dpm_solver(2)), 20.4125, 0.0266),
    "lms": ("LMSDiscreteScheduler", {"num_train_timesteps": 1100}, from_input(solvers.lms(4)), 1006.388, 1.31),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sums(name, x64):
    """Ten steps with the model x k/(k + 1) of integer timesteps k, by both."""
    peer, config, solver, total, mean = PUBLISHED[name]
    config = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, **config}
    x_T = (np.arange(768.0).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2)

    scheduler = getattr(diffusers, peer)(**config)
    scheduler.set_timesteps(10)
    theirs = torch.from_numpy(np.float32(x_T)) * scheduler.init_noise_sigma
    for k in scheduler.timesteps:
        theirs = scheduler.scale_model_input(theirs, k)
        theirs = scheduler.step(theirs * k / (k + 1), k, theirs).prev_sample

    chain = DDPM(tuple(np.linspace(config["beta_start"], config["beta_end"], config["num_train_timesteps"])))
    grid = prepare(peer, config, chain, 10)[2]
    step = lambda t: chain.N * t.reshape(-1, 1, 1, 1) - 1
    den = Denoiser(lambda x, t: x * step(t) / (step(t) + 1), chain, "v" if "prediction_type" in config else "noise")
    ours = sample(den, jnp.asarray(x_T * (1.0 if scheduler.init_noise_sigma == 1 else chain.sigma(grid[0]))), grid, solver)

    for x in (np.abs(theirs.numpy()), np.abs(ours)):
        assert total is None or abs(x.sum() - total) < 1e-2
        assert abs(x.mean() - mean) < 1e-3
