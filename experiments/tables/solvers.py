"""Error against network evaluations of every solver, on an exact mixture and on the trained digits model.

Distance to the converged probability flow at the end of the grid, by at most so many evaluations: the root mean square over 256 starts of an 8-D
mixture of five Gaussians with full covariances (VP), and the geometric mean over 64 starts of the model in --workdir, of which few near the border of
two digits would decide the other; its standard error, at 10 evaluations, in percent. Each on the best of four grids (log-SNR, Karras, uniform and
quadratic t), named of the mixture at 10 evaluations. Fitted solvers are fitted here to the mixture; for the model they are those in WORKDIR/solvers
(experiments.fit), where those that are missing are written. Stochastic solvers have no such error: they are tested by their marginals.
"""

from pathlib import Path

import jax
import numpy as np

from experiments import fit, plots, runs
from experiments.problems import turned_mixture
from experiments.tables._training import given
from samplers import amed, gits, grids, sample, solvers
from samplers.solvers import v3
from samplers.table import execute, pad
from sde_lib import VP

SEEDS = {"starts": 0, "fits": (1, 2, 3)}
READS = ("workdir",)
GRIDS = ("log_snr", "karras", "uniform", "quadratic")
NFES = (3, 5, 6, 8, 10, 15, 20, 50)
MODEL_NFES = (5, 6, 8, 10, 20)
FITS = (("dpm_solver_v3", 0), ("gits", 6), ("gits", 11), ("amed", 4), ("amed", 6), ("amed_plugin", 4), ("amed_plugin", 6))  # 5 and 10 evaluations
V3, PLAIN_V3 = "DPM-Solver-v3", "DPM-Solver-v3 without statistics"
SOLVERS = {
    "DDIM": solvers.ddim(),
    "Euler in t": solvers.euler(),
    "Heun in t": solvers.heun(),
    "EDM (Heun in sigma)": solvers.edm(),
    "midpoint in t": solvers.midpoint(),
    "RK4 in t": solvers.rk4(),
    "RK4 in log-SNR": solvers.rk4("log_snr"),
    "DPM-Solver-2": solvers.dpm_solver(2),
    "DPM-Solver-3": solvers.dpm_solver(3),
    "DPM-Solver++(2S)": solvers.dpm_solver_pp(2, "singlestep"),
    "DPM-Solver++(2M)": solvers.dpm_solver_pp(),
    "DPM-Solver++(3M), as released": solvers.dpm_solver_pp(3),
    "DPM-Solver++(3M), consistent": solvers.dpm_solver_pp(3, solver_type="taylor", consistent=True),
    "UniPC-2, bh2": solvers.unipc(2),
    "UniPC-3, bh1": solvers.unipc(3, "bh1"),
    "UniPC-3, bh2": solvers.unipc(3),
    "DEIS tAB-1": solvers.deis(1),
    "DEIS tAB-2": solvers.deis(2),
    "DEIS tAB-3": solvers.deis(3),
    "DEIS rhoAB-3": solvers.deis(3, "rhoab"),
    "LMS-4": solvers.lms(),
    "iPNDM-2": solvers.ipndm(2),
    "iPNDM-4": solvers.ipndm(),
    "PNDM": solvers.pndm(),
    "PNDM, Heun warm-up": solvers.pndm("heun"),
}


def steps_for(solver, sde, nfe: int) -> int:
    """The most steps with which `solver` makes at most `nfe` evaluations; 0 if one step needs more."""
    return max((n for n in range(1, nfe + 1) if solver(sde, grids.log_snr(sde, n)).nfe <= nfe), default=0)


def errors(den, x_T, exact, nfes, mean, depth: int = 13):
    """solver -> at most so many evaluations -> distances [B] to `exact` on the grid with the best mean, and solver -> that grid at 10 evaluations.

    One compiled program for each prediction consumed."""
    sde, result, best = den.sde, {}, {}
    keys = jax.random.split(jax.random.key(0), len(x_T))  # unused: the tables are deterministic
    for name, solver in SOLVERS.items():
        result[name] = {}
        for nfe in nfes:
            if not (steps := steps_for(solver, sde, nfe)):
                continue
            found = {}
            for grid in GRIDS:
                table = pad(solver(sde, getattr(grids, grid)(sde, steps)), max(nfes), depth)
                found[grid] = distance(execute(den, jax.tree.map(lambda c: np.asarray(c, x_T.dtype), table), x_T, keys)[0], exact)
            grid = min(found, key=lambda grid: mean(found[grid]))
            result[name][nfe] = found[grid]
            if nfe == 10:
                best[name] = grid
    return result, best


def distance(x, exact) -> np.ndarray:
    """The Euclidean distance of each example, [B]."""
    return np.linalg.norm(np.asarray(x - exact, np.float64).reshape(len(x), -1), axis=1)


def rms(distances: np.ndarray) -> float:
    return float(np.sqrt(np.mean(distances**2)))


def geometric(distances: np.ndarray) -> float:
    return float(np.exp(np.log(distances).mean()))


def means(found: dict, mean) -> dict[str, dict[int, float]]:
    return {name: {nfe: mean(distances) for nfe, distances in of.items()} for name, of in found.items()}


def problem():
    """Denoiser, starts and exact ends of the mixture."""
    gm = turned_mixture(8, 0.4)
    den = gm.denoiser(VP())
    x_T = VP().prior_sample(jax.random.key(0), (256, 8))
    return gm, den, x_T, sample(den, x_T, grids.log_snr(VP(), 400), solvers.rk4("log_snr"))


def v3_and_plain(statistics: v3.Statistics) -> dict:
    """DPM-Solver-v3 with statistics, and its degenerate self without."""
    ends = (statistics.log_snr[0], statistics.log_snr[-1])
    plain = v3.Statistics.constant(ends, statistics.l.shape[1:])
    return {V3: v3.dpm_solver_v3(statistics), PLAIN_V3: v3.dpm_solver_v3(plain)}


def fitted_to_mixture(gm, den, x_T, exact, quick: bool) -> dict[str, dict[int, np.ndarray]]:
    """The distances of the fitted solvers of the mixture."""
    sde, pool = den.sde, den.sde.prior_sample(jax.random.key(1), (512, 8))
    log_snr = sde.log_snr(grids.log_snr(sde, 10 if quick else 119))
    statistics = v3.estimate(den, gm.sample(jax.random.key(2), 64 if quick else 1024), jax.random.key(3), log_snr)
    result = {name: {} for name in (V3, PLAIN_V3, "AMED-Solver", "AMED-Plugin on iPNDM", "iPNDM-4 on GITS", "DPM-Solver++(2M) on GITS")}
    for n in (5,) if quick else (5, 6, 8, 10, 15, 20):
        for name, method in v3_and_plain(statistics).items():
            result[name][n] = distance(sample(den, x_T, grids.log_snr(sde, n), method), exact)
        times = gits(den, pool[:256], n)
        result["iPNDM-4 on GITS"][n] = distance(sample(den, x_T, times, solvers.ipndm()), exact)
        result["DPM-Solver++(2M) on GITS"][n] = distance(sample(den, x_T, times, solvers.dpm_solver_pp()), exact)
    for n in (6,) if quick else (6, 8, 10):
        for name, base in (("AMED-Solver", "midpoint"), ("AMED-Plugin on iPNDM", "ipndm")):
            times, middles = amed.every_second(grids.quadratic, sde, n // 2, base)
            params, _ = fit.fit_predictor(den, pool, times, base, middles, iterations=2 if quick else 200)
            result[name][n] = distance(amed.amed(den, x_T, times, fit.predictor(params), base, middles), exact)
    return result


def fitted(run: runs.Run) -> runs.Run:
    """The run, to which all solvers of FITS are fitted now."""
    for solver, steps in FITS:
        if not fit.file_of(run.workdir, solver, steps).exists():
            fit.write(run, solver, steps, examples=256 if solver == "dpm_solver_v3" else 512)
    return run


def fitted_to_model(run, den, x_T, exact) -> dict[str, dict[int, np.ndarray]]:
    """The distances of the solvers in WORKDIR/solvers; the last step, which denoises, left out."""
    result, sde = {}, den.sde
    folder = Path(run.workdir) / "solvers"
    if (folder / "dpm_solver_v3.npz").exists():
        for name, method in v3_and_plain(fit.statistics(folder / "dpm_solver_v3.npz")).items():
            result[name] = {n: distance(sample(den, x_T, grids.log_snr(sde, n), method), exact) for n in MODEL_NFES}
    for file in sorted(folder.glob("gits_*.npz")):
        times = fit.load_times(file)
        for name, solver in (("iPNDM-4 on GITS", solvers.ipndm()), ("DPM-Solver++(2M) on GITS", solvers.dpm_solver_pp())):
            result.setdefault(name, {})[len(times) - 1] = distance(sample(den, x_T, times, solver), exact)
    for solver, name in (("amed", "AMED-Solver"), ("amed_plugin", "AMED-Plugin on iPNDM")):
        for file in sorted(folder.glob(f"{solver}_[0-9]*.npz")):
            params, times, middles = fit.load_predictor(file, run.dataset.shape)
            nfe = amed.evaluations(sde, times)
            x = amed.amed(den, x_T, times, fit.predictor(params), fit.BASES[solver], middles)
            result.setdefault(name, {})[min(n for n in MODEL_NFES if n >= nfe)] = distance(x, exact)
    return result


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and gates on the mixture; figures are written to `out`."""
    trained = None if quick else fitted(given(workdir))  # first, lest it is missing
    gm, den, x_T, exact = problem()
    nfes = (5, 10) if quick else NFES
    found, best = errors(den, x_T, exact, nfes, rms)
    mixture = means(found | fitted_to_mixture(gm, den, x_T, exact, quick), rms)
    panels = {"exact mixture (VP)": mixture}
    if not quick:
        den = trained.denoiser()
        x_T = den.sde.prior_sample(jax.random.key(0), (64, *trained.dataset.shape))
        exact = sample(den, x_T, grids.log_snr(den.sde, 200), solvers.heun("log_snr"))
        found = errors(den, x_T, exact, MODEL_NFES, geometric)[0] | fitted_to_model(trained, den, x_T, exact)
        title, model = trained.dataset.name, means(found, geometric)
        spread = {name: 100 * float(np.log(of[10]).std(ddof=1) / np.sqrt(len(x_T))) for name, of in found.items() if 10 in of}
        panels[f"{title} model"] = model
    plots.solver_errors(panels, out / "solvers.png")
    rows = []
    for name in mixture:
        row = {"solver": name, "grid": best.get(name, "")} | {f"mixture {n}": mixture[name].get(n) for n in nfes}
        if not quick:
            row |= {f"{title} {n}": model.get(name, {}).get(n) for n in MODEL_NFES} | {f"± {title} 10, %": spread.get(name)}
        rows.append(row)
    if quick:
        return rows, {}
    higher = [name for name in SOLVERS if name not in ("DDIM", "Euler in t")]
    gates = {f"{name} is better than DDIM at 50 evaluations": mixture[name][50] < mixture["DDIM"][50] for name in higher}
    bases = {V3: PLAIN_V3, "AMED-Solver": "DPM-Solver-2", "AMED-Plugin on iPNDM": "iPNDM-4"}
    for name, base in bases.items():
        both = [n for n in mixture[name] if n in mixture[base] and n <= 10]
        gates |= {f"{name} is better than {base} at {n} evaluations": mixture[name][n] < mixture[base][n] for n in both}
    return rows, gates
