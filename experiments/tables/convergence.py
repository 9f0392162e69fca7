"""Error against network evaluations of every deterministic solver, on an exact score.

A 2-D mixture of five Gaussians (radius 0.8, standard deviation 0.2), 256 starts in float64, sigma from 80 to 0.002 on Karras' grid with
rho = 7, against a converged DOP853 solution. Slopes over n = 256..2048 are the orders of convergence; "published" are the released
implementations run on the same problem (another draw of the starts), "theory" the order that the papers prove.
"""

import jax
import numpy as np
from scipy import integrate

from experiments import plots
from samplers import grids, sample, solvers
from sde_lib import EDM, GaussianMixture

SEEDS = {"starts": 0}
SOURCES = {"published": "the released implementations (EDM, DPM-Solver, diff-sampler), run on this problem from other starts"}
# order in theory; RMSE at 10 evaluations of the released implementations (None: not measured there)
SOLVERS = {
    "euler": (solvers.euler(), 1, 0.165),
    "ddim": (solvers.ddim(), 1, 0.165),
    "heun": (solvers.heun(), 2, 0.585),
    "rk4": (solvers.rk4(), 4, None),
    "dpm_solver 2 (DPM-2)": (solvers.dpm_solver(2), 2, 0.514),
    "dpm_solver 3": (solvers.dpm_solver(3), 3, None),
    "dpm_solver_pp 2S": (solvers.dpm_solver_pp(2, "singlestep"), 2, None),
    "dpm_solver_pp 2M": (solvers.dpm_solver_pp(lower_order_final=False), 2, 0.149),
    "dpm_solver_pp 3M, as released": (solvers.dpm_solver_pp(3, lower_order_final=False), 2, 0.0812),
    "dpm_solver_pp 3M, consistent": (solvers.dpm_solver_pp(3, solver_type="taylor", consistent=True, lower_order_final=False), 3, None),
    "unipc 2": (solvers.unipc(2, lower_order_final=False), 3, None),
    "deis rhoab 2": (solvers.deis(2, "rhoab"), 3, None),
    "ipndm 4": (solvers.ipndm(), 2, 0.0435),
}


def problem(n: int):
    """Starts [n, 2] at sigma = 80, their exact ends at sigma = 0.002, and the denoiser; float64."""
    angles = 2 * np.pi * np.arange(5) / 5
    gm = GaussianMixture(0.8 * np.stack([np.cos(angles), np.sin(angles)], -1), np.full(5, 0.2))
    sde = EDM()
    den = gm.denoiser(sde)
    x_T = np.asarray(sde.prior_sample(jax.random.key(0), (n, 2)))
    field = jax.jit(lambda t, x: den.velocity(x.reshape(-1, 2), t).reshape(-1))
    # d x / d log sigma = sigma velocity: even steps over the five decades of sigma
    rhs = lambda s, x: np.exp(s) * np.asarray(field(np.exp(s), x))
    solution = integrate.solve_ivp(rhs, np.log([sde.sigma_max, sde.sigma_min]), x_T.reshape(-1), "DOP853", rtol=1e-12, atol=1e-12)
    return den, x_T, solution.y[:, -1].reshape(-1, 2)


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows of the table, and whether the measured orders are those of the theory; figures are written to `out`."""
    with jax.enable_x64(True):
        den, x_T, exact = problem(32 if quick else 256)
        rows, curves = [], {}

        def rmse(solver, steps):
            times = grids.karras(EDM(), steps)
            x = sample(den, x_T, times, solver)
            return solver(EDM(), times).nfe, float(np.sqrt(np.mean(np.sum((np.asarray(x) - exact) ** 2, -1))))

        for name, (solver, order, published) in SOLVERS.items():
            per_step = solver(EDM(), grids.karras(EDM(), 1)).nfe
            curves[name] = dict(rmse(solver, n // per_step) for n in (5, 6, 8, 10, 15, 20, 30, 50) if n >= per_step)
            steps = np.array([32, 64] if quick else [256, 512, 1024, 2048])
            errors = [rmse(solver, n)[1] for n in steps]
            slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
            at_ten = curves[name].get(10)
            rows.append({"solver": name, "order": slope, "theory": order, "RMSE at 10 evaluations": at_ten, "published": published})
        plots.solver_errors({"mixture of five Gaussians, sigma 80 to 0.002, rho = 7": curves}, out / "convergence.png")
    return rows, {} if quick else {"every order is within 0.1 of the theory": all(abs(row["order"] - row["theory"]) <= 0.1 for row in rows)}
