"""Every option of every solver and grid is checked by that solver, in one line, on the path and the grid that are used."""

import inspect
import itertools

import numpy as np
import pytest

from experiments.sample import make_solver, sampler
from samplers import grids, solvers
from samplers.solvers.exponential import multistep, singlestep
from samplers.solvers.v3 import Statistics, dpm_solver_v3
from sde_lib import EDM, VE, VP, Linear

# values that no option of any solver can mean, and those that none but functions, words or intervals can
IMPOSSIBLE = {"a negative number": -0.5, "not a number": float("nan"), "a word": "seven", "nothing": [], "a dictionary": {}, "complex": 1j}


def options_of(name):
    """The options of a solver, those of DPM-Solver's methods included."""
    factory = solvers.SOLVERS[name]
    options = [p for p in inspect.signature(factory).parameters if p != "options"]
    if "options" in inspect.signature(factory).parameters:
        options += [p for method in (singlestep, multistep) for p in inspect.signature(method).parameters if p not in ("prediction", "order")]
    return options


def test_impossible_values_are_refused_when_the_solver_is_made(solver_name):
    """In one line that names the option. (Nothing at all is a list of no intervals, with which restart is its solver.)"""
    for option, kind in itertools.product(options_of(solver_name), IMPOSSIBLE):
        if (option, kind) == ("intervals", "nothing"):
            continue
        others = {}
        if "options" in inspect.signature(solvers.SOLVERS[solver_name]).parameters:
            single = option in inspect.signature(singlestep).parameters and option != "solver_type"
            others = {"order": 3, "method": "singlestep" if single else "multistep"}
            others.pop(option, None)
        with pytest.raises(ValueError, match=option.replace("r1", "r1|r2")) as refused:
            make_solver(solver_name, **{**others, option: IMPOSSIBLE[kind]})
        assert "\n" not in str(refused.value), kind


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: solvers.restart(rho=0), "restart: rho = 0: expected a number above 0 and finite"),
        (lambda: solvers.restart(rho=-7.0), "rho = -7.0"),
        (lambda: solvers.restart(3), "expected a list of"),
        (lambda: solvers.restart((3, 2, 0.06, 0.3)), "interval 3: expected .N, K, t_min, t_max"),
        (lambda: solvers.restart(((2.5, 2, 0.06, 0.3),)), "N of 2 or more"),
        (lambda: solvers.restart(solver="heun"), r"solver 'heun': expected a solver, such as solvers.heun\('sigma'\)"),
        (lambda: solvers.unipc(2.0), "order = 2.0: expected a whole number"),
        (lambda: solvers.unipc(True), "order = True"),
        (lambda: solvers.dpm_solver_pp(2.0), "order 2.0: expected 1 or 2 or 3"),
        (lambda: solvers.dpm_solver(2, r1=1.0), "of order 2: r1 = 1.0: expected a number above 0 and below 1"),
        (lambda: solvers.dpm_solver(3, r1=0.7), "r1 = 0.7, r2 = 0.6.*: expected r1 < r2"),
        (lambda: solvers.dpm_solver(2, r2=0.9), "r2 would not be used"),
        (lambda: solvers.dpm_solver(1, r1=0.5), "r1 would not be used"),
        (lambda: solvers.dpm_solver(2, r1=0.5, inner="grid"), "r1 would not be used"),
        (lambda: solvers.edm(1.0, s_min=2.0, s_max=1.0), "s_max = 1.0: expected a number of at least 2"),
        (lambda: solvers.deis(variant="rhoab", variable=abs), "variant 'tab'"),
        (lambda: solvers.ddim(np.inf), "eta = inf: expected a number of at least 0 and finite"),
        (lambda: grids.karras(VP(), 4, rho=0), "rho = 0 of a grid: expected a finite number above 0"),
        (lambda: grids.exponential(VP(), 4, rho=-1.0), "rho = -1.0"),
        (lambda: grids.vp_uniform(VP(), 4, rho=0), "rho = 0"),
        (lambda: grids.vp_uniform(VP(), 4, t_min=0.0), "t_min = 0.0"),
        (lambda: grids.uniform(VP(), 2.5), "n = 2.5 steps: expected a whole number"),
        (lambda: grids.few(VP(), -1), "n = -1 steps"),
        (lambda: dpm_solver_v3(Statistics.constant((-5.0, 5.0), (2,)), order=2.0), "order 2.0"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("sde", [VE(sigma_max=348.0), EDM(sigma_max=348.0)], ids=["VE", "EDM"])
def test_a_solver_is_judged_on_the_path_that_it_runs_on(sde, tmp_path):
    """Restart from 300 is within these paths and not within VP, whose sigma/alpha ends at 152; where it is not, the path's own range is named."""
    draw = lambda sde, t_max: sampler(sde, (2,), tmp_path, "restart", 18, "karras", 1e-5, (f"intervals=[(3, 2, 30., {t_max})]",))
    assert callable(draw(sde, 300.0))
    with pytest.raises(ValueError, match="sigma/alpha of the grid is 348 to .* expected t_max within it"):
        draw(sde, 400.0)
    with pytest.raises(ValueError, match="sigma/alpha of the grid is 152.* expected t_max within it"):
        draw(VP(), 300.0)


@pytest.mark.parametrize("order, nfe, orders", [(2, 6, [2, 2, 2]), (2, 7, [2, 2, 2, 1]), (3, 6, [3, 2, 1]), (3, 7, [3, 3, 1]), (3, 8, [3, 3, 2])])
@pytest.mark.parametrize("make", [solvers.dpm_solver, solvers.dpm_solver_pp])
def test_singlestep_on_a_grid_of_its_own(make, order, nfe, orders):
    """inner="uniform_logsnr": the authors' steps (orders as they split the evaluations, equal in log-SNR between the grid's
    ends) are those of steps made by hand, whatever the grid is between them."""
    sde, log_snr = VP(), lambda t: VP().log_snr(t)
    times = grids.quadratic(sde, nfe)
    table = make(order, "singlestep", inner="uniform_logsnr")(sde, times)
    ends = sde.time(np.linspace(log_snr(times[0]), log_snr(times[-1]), len(orders) + 1))
    parts = [make(now, "singlestep")(sde, ends[i : i + 2]) for i, now in enumerate(orders)]
    assert table.nfe == nfe
    np.testing.assert_allclose(table.times, np.concatenate([part.times for part in parts]), rtol=1e-8)
    for name in ("x", "p"):
        width = getattr(table, name).shape[1]
        by_hand = [np.pad(getattr(part, name), ((0, 0), (0, width - getattr(part, name).shape[1]))) for part in parts]
        np.testing.assert_allclose(getattr(table, name), np.concatenate(by_hand), rtol=1e-6, atol=1e-9)
    assert make(order, "singlestep", inner="uniform_logsnr")(Linear(), grids.karras(Linear(), nfe)).nfe == nfe  # from alpha = 0: DDIM's step first
    with pytest.raises(ValueError, match="ends above sigma = 0"):
        make(order, "singlestep", inner="uniform_logsnr")(sde, grids.with_zero(times))


def test_ratios_of_inner_evaluations():
    """r1 of order 2 may be anything between 0 and 1: the inner evaluation is at that share of the step in log-SNR."""
    sde, times = Linear(), np.array([0.9, 0.4])
    table = solvers.dpm_solver(2, r1=0.75)(sde, times)
    share = (sde.log_snr(table.times) - sde.log_snr(0.9)) / (sde.log_snr(0.4) - sde.log_snr(0.9))
    np.testing.assert_allclose(share, [0.0, 0.75], atol=1e-12)
    share = sde.log_snr(solvers.dpm_solver(3, r1=0.2, r2=0.5)(sde, times).times) - sde.log_snr(0.9)
    np.testing.assert_allclose(share / (sde.log_snr(0.4) - sde.log_snr(0.9)), [0.0, 0.2, 0.5], atol=1e-12)
