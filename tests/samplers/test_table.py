"""Tables against truth: exact Gaussian recursions, orders of convergence, marginals of an oracle, and the executor's own promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from affine import exact_flow, propagate, slope_of_error
from scipy import stats

from samplers import Row, grids, predictor_corrector, sample, solvers, stack
from samplers.solvers.stochastic import of_score
from samplers.table import execute, pad
from sde_lib import DDPM, EDM, NCSN, PLANE, SDE, VE, VP, Denoiser, GaussianMixture, Linear, SubVP

SOLVERS = {name: solver() for name, solver in solvers.SOLVERS.items()}
FREE = {"lower_order_final": False}  # a last step of order 1 would limit the order to 2
ORDERS = {  # of the deterministic solvers; the start with lower orders limits those of order 4 to 3.5 on some paths
    "euler": (solvers.euler(), 1), "euler sigma": (solvers.euler("sigma"), 1), "euler log_snr": (solvers.euler("log_snr"), 1),
    "heun": (solvers.heun(), 2), "heun sigma": (solvers.heun("sigma"), 2), "heun log_snr": (solvers.heun("log_snr"), 2),
    "midpoint": (solvers.midpoint(), 2), "midpoint log_snr": (solvers.midpoint("log_snr"), 2),
    "kutta3": (solvers.runge_kutta(solvers.KUTTA3, "log_snr"), 3), "rk4": (solvers.rk4(), 4), "rk4 sigma": (solvers.rk4("sigma"), 4),
    "rk4 log_snr": (solvers.rk4("log_snr"), 4), "ddim": (solvers.ddim(), 1), "edm": (solvers.edm(), 2), "dpm_solver 1": (solvers.dpm_solver(1), 1),
    "dpm_solver 2": (solvers.dpm_solver(2), 2), "dpm_solver 2 taylor": (solvers.dpm_solver(2, solver_type="taylor"), 2),
    "dpm_solver 3": (solvers.dpm_solver(3), 3), "dpm_solver 3 taylor": (solvers.dpm_solver(3, solver_type="taylor"), 3),
    "dpm_solver 2M": (solvers.dpm_solver(2, "multistep"), 2), "dpm_solver 3M": (solvers.dpm_solver(3, "multistep"), 2),
    "dpm_solver 3M consistent": (solvers.dpm_solver(3, "multistep", consistent=True), 3),
    "dpm_solver_pp 2S": (solvers.dpm_solver_pp(2, "singlestep"), 2), "dpm_solver_pp 3S": (solvers.dpm_solver_pp(3, "singlestep"), 3),
    "dpm_solver_pp 2M": (solvers.dpm_solver_pp(), 2), "dpm_solver_pp 2M taylor": (solvers.dpm_solver_pp(solver_type="taylor"), 2),
    "dpm_solver_pp 3M": (solvers.dpm_solver_pp(3), 2),
    "dpm_solver_pp 3M consistent": (solvers.dpm_solver_pp(3, solver_type="taylor", consistent=True), 3), "unipc 1": (solvers.unipc(1, **FREE), 2),
    "unipc 1 noise": (solvers.unipc(1, "bh1", "noise", **FREE), 2), "unipc 2": (solvers.unipc(2, **FREE), 3),
    "unipc 2 bh1 noise": (solvers.unipc(2, "bh1", "noise", **FREE), 3), "unipc 1 predictor": (solvers.unipc(1, corrector=False, **FREE), 1),
    "unipc 2 predictor": (solvers.unipc(2, corrector=False, **FREE), 2), "unipc 3 predictor": (solvers.unipc(3, "bh1", corrector=False, **FREE), 3),
    "unipc 3": (solvers.unipc(3, **FREE), 4),
    "deis 0": (solvers.deis(0), 1), "deis 1": (solvers.deis(1), 2), "deis 2": (solvers.deis(2), 3), "deis 3": (solvers.deis(3), 4),
    "deis 1 rhoab": (solvers.deis(1, "rhoab"), 2), "deis 2 rhoab": (solvers.deis(2, "rhoab"), 3), "lms 2": (solvers.lms(2), 2),
    "lms": (solvers.lms(), 4), "adams log_snr": (solvers.adams_bashforth(3, "log_snr"), 3), "ipndm 1": (solvers.ipndm(1), 1),
    "ipndm 2": (solvers.ipndm(2), 2), "ipndm": (solvers.ipndm(), 2), "pndm": (solvers.pndm(), 2), "pndm heun": (solvers.pndm("heun"), 2),
    "sde_dpm_solver_pp, no noise": (solvers.sde_dpm_solver_pp(2, eta=0.0), 2),
    "sde_dpm_solver_pp 3, no noise": (solvers.sde_dpm_solver_pp(3, eta=0.0), 2),
    "sde_dpm_solver_pp 3 consistent, no noise": (solvers.sde_dpm_solver_pp(3, eta=0.0, solver_type="taylor", consistent=True), 3),
    "sde_dpm_solver 2, no noise": (solvers.sde_dpm_solver(0.0, 2), 2), "sa_solver 3, no noise": (solvers.sa_solver(3, 0, 0.0, **FREE), 3),
    "sa_solver 3/4, no noise": (solvers.sa_solver(eta=0.0, **FREE), 4), "dpm_2_ancestral, no noise": (solvers.dpm_2_ancestral(0.0), 2),
    "2S ancestral, no noise": (solvers.dpm_solver_pp_2s_ancestral(0.0), 2), "dpm_solver_pp_sde, no noise": (solvers.dpm_solver_pp_sde(0.0), 2),
    "probability_flow": (solvers.probability_flow(), 1),
    "heun sigma then 2M": (solvers.then(solvers.heun("sigma"), solvers.dpm_solver_pp(), 0.3), 2),
}  # fmt: skip


# functions that live as long as the tests, so that tests of one kind share compiled programs
PREDICT = {kind: functools.partial(lambda kind, exact, x, t: exact.predict(kind, x, t), kind) for kind in PLANE}


@pytest.mark.parametrize("name", [name for name in ORDERS if name != "midpoint"])
def test_order_of_convergence(name):
    """The slope of the error is the solver's order within 0.1, n = 256 to 1024, sigma from 1000 to 0.05.

    From far out, for the lower orders that multistep methods start with would limit them to order 2 nearer to the data. (The leading error of the
    midpoint method in sigma vanishes on Gaussians; it is measured in t below.)
    """
    solver, order = ORDERS[name]
    slope, error = slope_of_error(EDM(sigma_max=1e3), solver, 1e3, 0.05)
    assert slope == pytest.approx(order, abs=0.1), error


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "rk4", "probability_flow"])
@pytest.mark.few_paths
def test_order_in_time_on_every_path(sde, name):
    """Those that step in t, from 0.9 T to 0.05 T (sigma' may be infinite at 0); rounding and the C^1 steps of a chain excused below 1e-8."""
    slope, error = slope_of_error(sde, *ORDERS[name][:1], 0.9 * sde.T, 0.05 * sde.T)
    assert slope >= ORDERS[name][1] - 0.15 or error < 1e-8


IN_TIME = (
    "euler",
    "heun",
    "midpoint",
    "rk4",
    "pndm",
    "heun sigma then 2M",
    "deis 1",
    "deis 2",
    "deis 3",
    "probability_flow",
)  # depend on t, not on log-SNR alone


@pytest.mark.parametrize("name", [name for name in ORDERS if name not in IN_TIME])
def test_solvers_in_log_snr_are_the_same_on_every_path(sde, name):
    """At equal log-SNR the probability flow of x/alpha, and every method in log-SNR or sigma/alpha, is the same on all paths: equal to 1e-8."""
    log_snr, x = np.linspace(-3.0, 3.0, 12), 17.0
    results = []
    for path in (sde, EDM()):
        times = path.time(log_snr)
        results.append(propagate(ORDERS[name][0](path, times), path, 0.6, 0.4, x_T=x * path.alpha(times[0])) / path.alpha(times[-1]))
    assert results[0] == pytest.approx(results[1], rel=1e-8)


STOCHASTIC = {name: solver for name, solver in SOLVERS.items() if solver(VP(), grids.log_snr(VP(), 4)).stochastic} | {
    "ancestral, forward variance": solvers.ancestral("forward"),
    "ddim, eta 1": solvers.ddim(1.0),
    "edm, churn": solvers.edm(churn=100.0),
    "restart": solvers.restart(((65, 3, 1.7, 4.0), (65, 2, 4.0, 6.0))),  # whose own steps do not double; the grid of EDM ends at 1.6
    "sde_dpm_solver_pp, first order": solvers.sde_dpm_solver_pp(1),
    "sde_dpm_solver_pp, noise early only": solvers.sde_dpm_solver_pp(eta=lambda t: float(t > 0.3)),
}


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.few_paths
def test_weak_order_of_stochastic_solvers(sde, name):
    """The error of the standard deviation falls by 1.5 or more when the steps double, where it is not below 1e-4 already."""
    solver = STOCHASTIC[name]
    errors = []
    for n in (400, 800):
        times = grids.log_snr(sde, n, eps=0.02 * sde.T)
        table = solver(sde, times)
        assert table.stochastic
        variance = propagate(table, sde, 0.6, prior=np.hypot(0.6 * sde.alpha(sde.T), sde.sigma(sde.T)))[1]
        errors.append(abs(np.sqrt(variance / ((sde.alpha(times[-1]) * 0.6) ** 2 + sde.sigma(times[-1]) ** 2)) - 1))
    assert errors[1] < 1e-4 or errors[0] / errors[1] >= 1.5, errors
    assert errors[1] < 0.02


def test_variance_of_euler_maruyama():
    """Relative error of the standard deviation at N = 1000 on data N(0, 0.25), times i/N to 0 (score_sde.md, check 3)."""
    times = np.arange(1000, -1, -1) / 1000
    for sde, want in ((VP(), 7.05e-4), (SubVP(), 7.96e-4)):
        variance = propagate(solvers.euler_maruyama()(sde, times), sde, 0.5, prior=1.0)[1]
        assert np.sqrt(variance) / 0.5 - 1 == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    "path, predictor, want",
    [
        (VP(), "reverse diffusion", 3.97e-3), (VP(), "ancestral", 2.72e-3), (VP(), "probability flow", 2.12e-2),
        (VE(), "euler_maruyama", 7.02e-4), (VE(), "reverse diffusion", 4.32e-3), (VE(), "ancestral", -4.40e-3), (VE(), "probability flow", 1.78e-2),
    ],
    ids=str,
)  # fmt: skip
def test_score_sde_samplers_as_tables(path, predictor, want):
    """score_sde's own samplers, its mismatches of step and time included, written as tables, have its variances (score_sde.md, check 3)."""
    n, vp = 1000, isinstance(path, VP)
    beta = np.linspace(0.1 / n, 20.0 / n, n)
    sigma = np.geomspace(0.01, 50.0, n)
    rows = []
    for t in np.linspace(1.0, 1e-3 if vp else 1e-5, n):
        k = int(np.floor(t * (n - 1) + 1e-9))
        shrink, g2 = (np.sqrt(1 - beta[k]), beta[k]) if vp else (1.0, sigma[k] ** 2 - (sigma[k - 1] ** 2 if k else 0.0))
        noise, keep, score = np.sqrt(g2), 2 - shrink, g2
        if predictor == "ancestral":
            keep, score = 1 / shrink, g2 / shrink
            noise = np.sqrt(g2) if vp else np.sqrt(g2) * (sigma[k - 1] if k else 0.0) / sigma[k]
        elif predictor == "probability flow":
            score, noise = 0.5 * g2, 0.0
        elif predictor == "euler_maruyama":
            score = path.diffusion(t) ** 2 / n
            keep, noise = 1.0, np.sqrt(score)
        x, p = of_score(path, t, score)
        rows.append(Row(t, {0: keep + x}, {0: p}, noise))
    variance = propagate(stack(rows, "data"), path, 0.5, prior=path.sigma(1.0) if not vp else 1.0)[1]
    assert np.sqrt(variance) / 0.5 - 1 == pytest.approx(want, rel=3e-3)


def test_reverse_diffusion_is_that_of_the_chain():
    """On DDPM, with times i/N, F = sqrt(1 - beta) - 1 and G^2 = beta; on NCSN, G^2 = s_i^2 - s_{i-1}^2 (2011.13456, appendix E)."""
    chain = DDPM()
    beta = np.array(chain.betas)[::-1]
    table = solvers.reverse_diffusion()(chain, np.arange(1000, -1, -1) / 1000)
    np.testing.assert_allclose(table.noise, np.sqrt(beta), rtol=1e-8)
    sigma = chain.sigma(table.times)
    np.testing.assert_allclose(table.x[:, 0], 2 - np.sqrt(1 - beta) - beta / sigma**2, rtol=1e-8)
    chain = NCSN()
    table = solvers.reverse_diffusion()(chain, chain.time_of_step(np.arange(1000, 0, -1)))
    np.testing.assert_allclose(table.noise**2, -np.diff(np.array(chain.sigmas)[::-1] ** 2), rtol=1e-8)


GATED = SOLVERS | {
    "ddim, eta 0.5": solvers.ddim(0.5),
    "edm, churn": solvers.edm(churn=40.0),
    "noise early only": solvers.sde_dpm_solver_pp(eta=lambda t: float(t > 0.3)),
    "pndm": solvers.pndm("heun"),  # the other warm-up has a longer history; its first steps are tested above
}
GATED.pop("probability_flow")  # so coarse that its distance on Linear is 0.073 after 150 steps; against its recursion in test_predictor_corrector.py


@functools.cache
def gated_table(sde, name):
    """The end of the grid, and the padded table in float32."""
    stages = -(-GATED[name](sde, grids.log_snr(sde, 6)).nfe // 6)
    times = grids.log_snr(sde, 150 // stages)
    return times[-1], jax.tree.map(np.float32, pad(GATED[name](sde, times), 160, 5))


OFTEN = {(VP, "noise"), (Linear, "velocity")}  # the other paths and predictions in the slow run
PAIRS = [
    pytest.param(cls(), kind, id=f"{cls.__name__}-{kind}", marks=[pytest.mark.slow] * ((cls, kind) not in OFTEN))
    for cls in SDE.__subclasses__()
    for kind in PLANE
]


@pytest.mark.parametrize("sde, kind", PAIRS)
def test_marginals_of_every_solver(sde, kind):
    """Samples of a 1-D mixture by about 150 evaluations of every solver pass a Kolmogorov-Smirnov test, whatever the network predicts.

    n = 1000, seed 0; bound 0.07, which a perfect sampler exceeds with probability 1e-4 (sqrt(log(2e4)/2000)); an EM with twice the noise has 0.2.
    """
    gm = GaussianMixture([[-0.8], [0.5]], [0.3, 0.2], [1.0, 2.0])
    exact = gm.denoiser(sde)
    den = Denoiser(jax.tree_util.Partial(PREDICT[kind], exact), sde, kind)
    x_T, keys, distance = sde.prior_sample(jax.random.key(0), (1000, 1)), jax.random.split(jax.random.key(1), 1000), {}
    for name in GATED:
        end, table = gated_table(sde, name)
        x = execute(den, table, x_T, keys)[0]
        alpha, sigma = sde.alpha(end), sde.sigma(end)
        cdf = lambda x, a=alpha, s=sigma: sum(w * stats.norm(a * m, np.hypot(a * d, s)).cdf(x) for m, d, w in ((-0.8, 0.3, 1 / 3), (0.5, 0.2, 2 / 3)))
        distance[name] = float(stats.kstest(np.asarray(x)[:, 0], cdf).statistic)
    assert max(distance.values()) <= 0.07, {name: value for name, value in distance.items() if value > 0.05}


@pytest.mark.parametrize("sde", [VP(), pytest.param(Linear(), marks=pytest.mark.slow)], ids=["VP", "Linear"])
def test_executor_agrees_with_the_recursion(sde, solver_name, x64):
    """The scan gives what the independent recursion above gives, in float64 to 1e-9, for deterministic tables; with float32 to 1e-4."""
    table = SOLVERS[solver_name](sde, grids.log_snr(sde, 12))
    if table.stochastic:
        table = dataclasses.replace(table, noise=None)
    x_T = 1.3 * sde.sigma(sde.T)
    gm = GaussianMixture(np.array([[0.4]]), np.array([0.6]))
    want = propagate(table, sde, 0.6, 0.4, x_T=x_T)
    table, key = pad(table, 50, 13), jax.random.split(jax.random.key(0), 1)  # one program for all tables that consume one prediction
    run = lambda dtype: execute(gm.denoiser(sde), jax.tree.map(lambda c: np.asarray(c, dtype), table), jnp.full((1, 1), x_T, dtype), key)[0]
    np.testing.assert_allclose(run(np.float64)[0, 0], want, rtol=1e-9)
    if solver_name != "heun":  # velocities in float32 cancel more
        np.testing.assert_allclose(run(np.float32)[0, 0], want, rtol=2e-4, atol=1e-4)


def test_dpm_solver_pp_is_the_published_update():
    """k-diffusion's and the paper's 2M formulas, step by step, on EDM: x' = (s'/s) x - expm1(-h) ((1 + 1/2r) D - 1/2r D_old)."""
    gm = GaussianMixture([[0.3, -0.4], [-0.2, 0.9]], [0.2, 0.4])
    with jax.enable_x64(True):
        den = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), gm).denoiser(EDM())
        sigmas = grids.with_zero(grids.karras(EDM(), 14))
        x_T = x = 80.0 * jax.random.normal(jax.random.key(0), (3, 2), jnp.float64)
        old = None
        for i, (s, s_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
            d = den.data(x, s)
            if s_next == 0:
                x = d
            else:
                h = np.log(s / s_next)
                r = np.log(sigmas[i - 1] / s) / h if old is not None else np.inf
                x = s_next / s * x - np.expm1(-h) * ((1 + 0.5 / r) * d - (0.5 / r) * (old if old is not None else 0))
            old = d
        np.testing.assert_allclose(sample(den, x_T, sigmas, solvers.dpm_solver_pp()), x, rtol=1e-10)


def edm_by_hand(data, x, sigmas, xi, churn, s_min, s_max, s_noise):
    """2206.00364, algorithm 2; xi yields standard normal noise by evaluation."""
    e = 0
    for t, s in zip(sigmas[:-1], sigmas[1:]):
        gamma = min(churn / (len(sigmas) - 1), np.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        raised = t + gamma * t
        x_hat = x + np.sqrt(raised**2 - t**2) * s_noise * xi(e)
        d = (x_hat - data(x_hat, raised)) / raised
        x, e = x_hat + (s - raised) * d, e + 1
        if s > 0:
            x, e = x_hat + (s - raised) * 0.5 * (d + (x - data(x, s)) / s), e + 1
    return x


def restart_by_hand(data, x, sigmas, xi, n, k, t_min, t_max, s_noise):
    """2306.14878, algorithm 1, with one interval and rho = 7; the noise is that of the evaluation before it."""
    heun = lambda x, sigmas: edm_by_hand(data, x, sigmas, lambda e: 0.0, 0.0, 0.0, 0.0, 1.0)
    i = int(np.argmin(np.abs(sigmas - t_min)))
    x = heun(x, sigmas[: i + 1])
    ladder = np.linspace(t_max ** (1 / 7), sigmas[i] ** (1 / 7), n) ** 7
    for j in range(k):
        x = heun(x + np.sqrt(t_max**2 - sigmas[i] ** 2) * s_noise * xi(2 * i - 1 + j * 2 * (n - 1)), ladder)
    return heun(x, sigmas[i:])


def test_churn_and_restart_are_the_published_algorithms():
    """Step by step on EDM, in float64, with the published settings for CIFAR-10 and the executor's own noise; and the published evaluations."""
    sde, sigmas, keys = EDM(), grids.with_zero(grids.karras(EDM(), 17, eps=0.002)), jax.random.split(jax.random.key(1), 3)
    with jax.enable_x64(True):
        den = GaussianMixture(np.array([[0.3, -0.4], [-0.2, 0.9]]), np.array([0.2, 0.4])).denoiser(sde)
        x_T = 80.0 * jax.random.normal(jax.random.key(0), (3, 2), np.float64)
        xi = lambda e: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, e), (2,), np.float64))(keys)
        churned, restarted = (30.0, 0.01, 1.0, 1.007), (3, 5, 0.06, 0.3)
        want = edm_by_hand(den.data, x_T, sigmas, xi, *churned)
        np.testing.assert_allclose(sample(den, x_T, sigmas, solvers.edm(*churned), keys), want, rtol=1e-9)
        want = restart_by_hand(den.data, x_T, sigmas, xi, *restarted, 1.003)
        np.testing.assert_allclose(sample(den, x_T, sigmas, solvers.restart((restarted,), 1.003), keys), want, rtol=1e-9)
    assert [solvers.restart(((3, k, 0.06, 0.3),))(sde, sigmas).nfe for k in (0, 2, 5, 10, 20)] == [35, 43, 55, 75, 115]
    imagenet = (4, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 5, 0.59, 1.09), (4, 5, 0.3, 0.59), (6, 6, 0.06, 0.3)
    assert solvers.restart(imagenet)(sde, grids.with_zero(grids.karras(sde, 35, eps=0.002))).nfe == 203
    with pytest.raises(ValueError, match="expected a deterministic one"):
        solvers.restart(solver=solvers.ancestral())(sde, sigmas)
    none, heun = (solver(sde, sigmas) for solver in (solvers.restart(((3, 0, 0.06, 0.3),)), solvers.heun("sigma")))
    assert all(np.array_equal(getattr(none, field.name), getattr(heun, field.name)) for field in dataclasses.fields(heun))


def test_inflated_noise_would_be_seen(sde):
    """Control of the weak order above: restart and churn with their noise inflated by 1.2 end with a standard deviation more than 2 % off."""
    times = grids.log_snr(sde, 400, eps=0.02 * sde.T)
    inflated = solvers.restart(((65, 3, 1.7, 4.0),), s_noise=1.2), solvers.edm(churn=100.0, s_noise=1.2)
    for solver in inflated:
        variance = propagate(solver(sde, times), sde, 0.6, prior=np.hypot(0.6 * sde.alpha(sde.T), sde.sigma(sde.T)))[1]
        assert np.sqrt(variance) / np.hypot(0.6 * sde.alpha(times[-1]), sde.sigma(times[-1])) - 1 > 0.02


def test_a_last_step_to_zero_denoises(sde):
    """Solvers in log-SNR end at x = D exactly where sigma(0) = 0, and Heun saves its last evaluation there (2N - 1).

    Where sigma(0) is above 0 (VE, NCSN) the step to t = 0 is one like the others.
    """
    times = grids.with_zero(grids.log_snr(sde, 9))
    if sde.sigma(0.0) == 0:
        for solver in (solvers.ddim(), solvers.dpm_solver_pp(), solvers.ancestral(), solvers.ancestral("forward")):
            table = solver(sde, times)
            assert table.x[-1, 0] == 0 and table.p[-1, 0] == pytest.approx(sde.alpha(0.0)) and not np.any(table.p[-1, 1:])
            assert table.noise is None or table.noise[-1] == 0
    assert solvers.heun()(sde, times).nfe == (19 if sde.sigma(0.0) == 0 else 20) and solvers.euler()(sde, times).nfe == 10


def test_heun_keeps_its_order_in_a_step_to_t_0_of_ve():
    """On data N(0.4, 0.6^2): slope 2 down to t = 0, where sigma is 0.01. With an Euler step there it is 1.5 at most."""
    errors = []
    for n in (200, 400):
        times = np.linspace(0.5, 0.0, n + 1)
        x = 1.3 * VE().sigma(0.5)
        errors.append(abs(propagate(solvers.heun()(VE(), times), VE(), 0.6, 0.4, x_T=x) - exact_flow(VE(), 0.6, 0.4, x, 0.0, 0.5)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1), errors


def test_analytical_first_step():
    """afs(solver) is the solver with eps = x/sqrt(alpha^2 + sigma^2) at its first point, in one evaluation less, whatever its history."""
    sde, x_T = VP(), np.random.default_rng(0).normal(size=(3, 2))
    gm = GaussianMixture([[0.3, -0.4], [-0.2, 0.9]], [0.2, 0.4])
    with jax.enable_x64(True):
        exact, times = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), gm).denoiser(sde), grids.karras(VP(), 7)
        known = lambda x, t: jnp.where(t[:, None] == sde.T, x / np.hypot(sde.alpha(sde.T), sde.sigma(sde.T)), exact.noise(x, t))
        informed, keys = Denoiser(known, sde, "noise"), jax.random.split(jax.random.key(0), 3)
        run = lambda den, solver: execute(den, pad(solver(sde, times), 32, 14), x_T, keys)[0]  # one program for all that consume one prediction
        families = (solvers.ipndm(), solvers.deis(), solvers.pndm(), solvers.dpm_solver(2))  # of the noise; the others of the data
        for solver in (*families, solvers.ddim(), solvers.dpm_solver_pp(), solvers.unipc(), solvers.edm()):
            shorter = solvers.afs(solver)
            assert shorter(sde, times).nfe == solver(sde, times).nfe - 1
            want = run(informed, solver)
            np.testing.assert_allclose(run(exact, shorter), want, rtol=1e-8)
        alpha, sigma = sde.alpha(times[0]), sde.sigma(times[0])
        total, step = np.hypot(alpha, sigma), times[1] - times[0]
        slope = sde.alpha_dot(times[0]) * alpha / (total * (total + sigma)) + sde.sigma_dot(times[0]) / total
        assert solvers.afs(solvers.euler())(sde, times).at_x[0, 0] == pytest.approx(1 + step * slope, rel=1e-12)  # of the velocity
        for refused in (solvers.ancestral(), solvers.edm(churn=1.0), solvers.sde_dpm_solver_pp()):
            with pytest.raises(ValueError, match="expected a deterministic solver"):
                solvers.afs(refused)(sde, times)
        with pytest.raises(ValueError, match="alpha.T. > 0"):
            solvers.afs(solvers.ddim())(Linear(), grids.karras(Linear(), 7))


def test_solvers_change_on_the_way():
    """then(a, b, t) is a down to t and b from there, also where one consumes the noise, by a moved point of evaluation, and the other the data."""
    sde, x_T = VP(), np.random.default_rng(0).normal(size=(3, 2))
    with jax.enable_x64(True):
        den = GaussianMixture(np.array([[0.3, -0.4], [-0.2, 0.9]]), np.array([0.2, 0.4])).denoiser(sde)
        times = grids.karras(sde, 9)
        for first, second in ((solvers.afs(solvers.ipndm()), solvers.dpm_solver_pp()), (solvers.dpm_solver_pp(), solvers.unipc(prediction="noise"))):
            want = sample(den, sample(den, x_T, times[:5], first), times[4:], second)
            np.testing.assert_allclose(sample(den, x_T, times, solvers.then(first, second, times[4])), want, rtol=1e-9)


def test_examples_are_independent(solver_name, mixture):
    """No result depends on batch-mates or on the size of the batch: one of three equals itself alone."""
    sde, times = VP(), grids.log_snr(VP(), 5)
    den, x = mixture.denoiser(sde), sde.prior_sample(jax.random.key(0), (3, 2))
    keys = jax.random.split(jax.random.key(1), 3)
    table = jax.tree.map(np.float32, pad(SOLVERS[solver_name](sde, times), 20, 13))
    every = execute(den, table, x, keys)[0]
    np.testing.assert_allclose(execute(den, table, x[1:2], keys[1:2])[0], every[1:2], rtol=1e-5, atol=1e-6)


def test_no_recompilation(mixture):
    """Other times, other coefficients and other parameters run the program that is compiled already."""
    x = jnp.ones((2, 2))
    before = execute._cache_size()
    other = GaussianMixture(2 * mixture.means, 2 * mixture.stds, mixture.weights, mixture.eigenvectors)
    for eps, gm in ((1e-3, mixture), (1e-2, mixture), (1e-2, other)):
        sample(gm.denoiser(VP()), x, grids.log_snr(VP(), 6, eps), solvers.ddim())
    assert execute._cache_size() == before + 1


def test_under_jit_with_path(mixture):
    den, times = mixture.denoiser(VP()), grids.uniform(VP(), 4)
    x = jnp.ones((2, 2))
    path = jax.jit(lambda den, x: sample(den, x, times, solvers.ddim(), path=True))(den, x)
    assert path.shape == (5, 2, 2)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_allclose(path[-1], sample(den, x, times, solvers.ddim()), rtol=1e-5)


def test_coefficients_may_have_the_shape_of_an_example():
    """Per-coordinate tables (DPM-Solver-v3's) execute, here halving one coordinate a step."""
    den = Denoiser(lambda x, t: x, VP(), "data")
    table = lambda sde, times: stack([Row(t, {0: np.array([0.5, 1.0])}, {0: 0.0}) for t in times[:-1]], "data")
    np.testing.assert_allclose(sample(den, jnp.ones((3, 2)), grids.uniform(VP(), 3), table), [[0.125, 1.0]] * 3)


def test_mistakes_are_named(mixture):
    den, x, times = mixture.denoiser(VP()), jnp.ones((2, 2)), grids.uniform(VP(), 4)
    for bad, words in (
        (lambda: sample(den, x, [0.9, 0.5, 0.7], solvers.ddim()), "must decrease at every step"),
        (lambda: predictor_corrector(den, x, times[::-1], solvers.ddim()), "must decrease, from the prior"),
        (lambda: sample(den, x, times, solvers.ancestral()), "stochastic: pass key"),
        (lambda: sample(den, x, [2.0, 0.5], solvers.ddim()), "within"),
        (lambda: sample(den, x, [0.5], solvers.ddim()), "two or more"),
        (lambda: jax.jit(lambda t: sample(den, x, t, solvers.ddim()))(times), "outside of jit"),
        (lambda: sample(den, x, times, solvers.ancestral(), jax.random.split(jax.random.key(0), 3)), "one key per example"),
        (lambda: solvers.dpm_solver_pp(order=4), "expected 1 or 2"),
        (lambda: solvers.ancestral("both"), "posterior or forward"),
        (lambda: solvers.restart(((1, 2, 0.06, 0.3),)), "N of 2 or more"),
        (lambda: sample(den, x, times, solvers.restart(((3, 2, 0.06, 500.0),))), "expected t_max within it"),
        (lambda: stack([Row(0.5, {0: np.inf}, {0: 1.0})], "data"), "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()
