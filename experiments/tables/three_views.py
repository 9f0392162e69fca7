r"""One process, three views: the SDE's particles, the Fokker-Planck PDE on a grid, the probability-flow ODE's change of variables.

    SDE   dx = f x dt + g dw                                    a draw
    PDE   dp/dt = -div(f x p) + g^2/2 laplacian p               the density of all draws
    ODE   dx/dt = v = f x - g^2/2 score,   d log p/dt = -div v  along each path (2011.13456, eq. 13 and 39)

grad p = p score makes the PDE's last term div(g^2/2 score p), and so the PDE the continuity equation dp/dt = -div(v p) of the ODE: all three carry
one density. So do those of the reverse SDE dx = [f x - g^2 score] dt + g dw, run from T down: its noise takes back half of its score. A learned score
is not grad log p of what its reverse SDE makes: that SDE and its own PDE still agree, the ODE has another density, further off the more it misses.

Forward and reverse, all paths: a 1-D mixture of two Gaussians from 0.01 T to 0.9 T and back from its density there with the exact score (0.6 T of VE
and NCSN and 0.02 T of EDM, later wider than the grid; nearer to the ends f or g of some is infinite). "PDE", "ODE": L1 to the exact density, of 1200
cells in 1000 steps and of 600 points at tolerance 1e-7; "PDE-ODE": between them; "looser": of the ODE at 1e-4. "ratio": of the error of half the
cells and steps to this one; "before": a quarter to half. "mass": its error. "SDE-PDE", "SDE-ODE": sum of |share - probability| of 40,000 particles,
500 steps of weak order 2, in 60 bins; "due": what so many draws from the PDE's density have on average; "slope": of SDE-PDE in the number of
particles (400, 4000, 40,000; log to log); "z PDE", "z ODE": Pearson's statistic in its standard errors, seeds fixed. Gates: PDE <= 6e-4, mass <=
1e-8, ratios 3.5 to 4.5, ODE <= 1e-6 and closer than the looser one, |z| <= 3, slopes -0.5 +- 0.1. Beside them the cells of a 2-D grid alone (three
Gaussians on VP, 200 steps: the last ratio 3.5 to 4.5, mass <= 1e-8). Controls, z > 10: the ODE's drift with the SDE's noise, and 5 % more noise.

Learned: an MLP (3x128, velocity, VP) on 8 gaussians, after 500 and 4000 steps, and the exact score, from the prior at T to 0.01: 100 steps, 81 x 81
cells, 10,000 particles in 200 bins. "PDE", "ODE": L1 of the reverse SDE's and of the flow's density (`log_likelihood`, 81 x 81 points) to the exact
one at 0.01; "PDE-ODE", at those points, is of the grid, and 0 in the limit, if the score is exact, else of the score: on 41, 81 and 161 cells to a
side the exact score's falls by 3 to 5 each time, a learned one's moves by no more than that and stays at 5 times the exact one's or more. "SDE-ODE"
likewise; the ODE's own particles against that PDE have a row without a gate. "KL": of the exact density to the PDE's (in that row, to the ODE's), in
nats; "bound": Girsanov's, \int g^2/2 E|score - exact|^2 dt, which the KL of the ODE need not keep (2101.09258). Gates: |z PDE| <= 3, of the exact
score z ODE too, mass <= 1e-8, KL <= bound (plus the KL of the exact row, the grid's own, which is at most 0.01), and PDE-ODE, KL and bound are each
smaller after 4000 steps than after 500.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from configs import toy
from experiments import runs
from experiments.tables import _three_views_figures as figures
from experiments.tables._three_views import agreement, flow, girsanov, kl, l1, particles
from experiments.tables._training import trained
from experiments.toy import eight_gaussians_in_x
from samplers import grids, log_likelihood, sample_adaptive
from sde_lib import EDM, NCSN, SDE, VE, VP, GaussianMixture, Linear, Process, fokker_planck, forward_process, reverse_process

SEEDS = {"training": 0, "examples": 0, "noise": 1, "particles": 2, "Girsanov": (3, 4)}
COLUMNS = (
    "what", "PDE", "ratio", "before", "mass", "ODE", "looser", "PDE-ODE", "SDE-PDE", "SDE-ODE", "due", "slope", "z PDE", "z ODE", "KL", "bound",
)  # fmt: skip
ENDS = {EDM: 0.02, VE: 0.6, NCSN: 0.6}  # of T; elsewhere 0.9
Z = 3.0


def row(**found) -> dict:
    return {name: found.get(name.replace("-", "_").replace(" ", "_")) for name in COLUMNS}


def mixture() -> GaussianMixture:
    """Two Gaussians on the line, of the precision in force."""
    return GaussianMixture(np.array([[-0.8], [0.5]]), np.array([0.3, 0.2]), np.array([1.0, 2.0]))


def three_gaussians() -> GaussianMixture:
    """In the plane, two of them elongated and turned."""
    cos, sin = np.cos([0.0, 0.5, 1.2]), np.sin([0.0, 0.5, 1.2])
    turns = np.moveaxis(np.array([[cos, -sin], [sin, cos]]), -1, 0)
    return GaussianMixture(np.array([[0.8, 0.0], [-0.5, 0.6], [0.0, -0.7]]), np.array([[0.2, 0.2], [0.3, 0.1], [0.1, 0.25]]), [1.0, 2.0, 1.5], turns)


def span(sde: SDE) -> tuple[float, float]:
    """The first and last time of the 1-D comparison."""
    return 0.01 * sde.T, ENDS.get(type(sde), 0.9) * sde.T


def line(sde: SDE, cells: int) -> np.ndarray:
    """Centres that hold the density at all times of `span`."""
    wide = 6 * max(1.0, float(sde.sigma(span(sde)[1])))
    return np.linspace(-wide, wide, cells)


def drawn(gm: GaussianMixture, sde: SDE, t: float, n: int):
    """n exact draws at time t."""
    return sde.perturb(jax.random.key(1), gm.sample(jax.random.key(0), n), t)[0]


def exact(gm: GaussianMixture, sde: SDE, x, t: float):
    """The density at time t and points [..., n, d]."""
    return jnp.exp(gm.marginal_log_prob(sde, x.reshape(-1, x.shape[-1]), t)).reshape(x.shape[:-1])


def directions(gm: GaussianMixture, sde: SDE) -> dict[str, tuple[Process, float, float, float]]:
    """Each process with the time s at which it begins, and the times t of its first and last density."""
    first, last = span(sde)
    return {"forward": (forward_process(sde), first, first, last), "reverse": (reverse_process(gm.denoiser(sde)), sde.T - last, last, first)}


def carried(gm: GaussianMixture, sde: SDE, way: tuple, cells: int, steps: int, theta: float = 0.5):
    """Centres, the exact density there before and after one of `directions`, and what the PDE makes of the first."""
    process, s, first, last = way
    x = line(sde, cells)
    start, end = (exact(gm, sde, x[:, None], t) for t in (first, last))
    return x, start, end, fokker_planck(start, [x], np.linspace(s, s + abs(last - first), steps + 1), *process, theta=theta)


def of_a_path(sde: SDE, cells: int, steps: int, n: int) -> list[dict]:
    """Forward and in reverse, each view against the exact density and the others."""
    gm, rows = mixture(), []
    for name, way in directions(gm, sde).items():
        (process, s, first, last), errors = way, []
        for part in (4, 2, 1):
            x, start, end, p = carried(gm, sde, way, cells // part, steps // part)
            h = x[1] - x[0]
            errors.append(l1(p, end, [h]))
        points, odes = jnp.asarray(x[::2, None]), []
        for tolerance in (1e-4, 1e-7):
            there, change = flow(gm.denoiser(sde), points, last, first, tolerance)
            odes.append(exact(gm, sde, there, first) * jnp.exp(change))
        looser, ode = (l1(density, end[::2], [2 * h]) for density in odes)
        found = particles(jax.random.key(2), drawn(gm, sde, first, n), np.linspace(s, s + abs(last - first), steps // 2 + 1), process)
        found, counts = np.asarray(found), [n // 100, n // 10, n]
        near = [agreement(found[:k], p, [x], 60) for k in counts]
        to_ode = agreement(found, odes[1], [x[::2]], 60)
        rows.append(
            row(
                what=f"{name}, {type(sde).__name__}", PDE=errors[2], ratio=errors[1] / errors[2], before=errors[0] / errors[1],
                mass=abs(float((p - start).sum()) * h), ODE=ode, looser=looser, PDE_ODE=l1(p[::2], odes[1], [2 * h]), SDE_PDE=near[2].distance,
                SDE_ODE=to_ode.distance, due=near[2].due, slope=float(np.polyfit(np.log(counts), np.log([a.distance for a in near]), 1)[0]),
                z_PDE=near[2].z, z_ODE=to_ode.z,
            )
        )  # fmt: skip
    return rows


def gates_of_paths(rows: list[dict]) -> dict[str, bool]:
    """Those of the module docstring, of rows of `of_a_path`."""
    every = lambda name, low, high: all(low <= row[name] <= high for row in rows)
    return {
        "PDE: L1 <= 6e-4, mass to 1e-8": every("PDE", 0, 6e-4) and every("mass", 0, 1e-8),
        "PDE: of second order": every("ratio", 3.5, 4.5) and every("before", 3.5, 4.5),
        "ODE: L1 <= 1e-6, further off with a looser tolerance": every("ODE", 0, 1e-6) and all(row["ODE"] < row["looser"] for row in rows),
        "SDE: within 3 standard errors of PDE and ODE": every("z PDE", -Z, Z) and every("z ODE", -Z, Z),
        "SDE: nearer by the root of the number of particles": every("slope", -0.6, -0.4),
    }


def controls(cells: int, steps: int, n: int) -> list[dict]:
    """Particles of processes that have other marginals, against the PDE of the reverse SDE."""
    sde, gm, rows = VP(), mixture(), []
    right, s, first, last = way = directions(gm, sde)["reverse"]
    x, _, _, p = carried(gm, sde, way, cells, steps)
    other = lambda eta: reverse_process(gm.denoiser(sde), eta)
    for name, wrong in (
        ("ODE's drift, SDE's noise", Process(other(0.0).drift, right.diffusion)),
        ("5 % more noise", Process(right.drift, other(1.05).diffusion)),
    ):
        found = particles(jax.random.key(2), drawn(gm, sde, first, n), np.linspace(s, s + first - last, steps // 2 + 1), wrong)
        distance, due, z = agreement(np.asarray(found), p, [x], 60)
        rows.append(row(what=f"control, reverse, VP: {name}", SDE_PDE=distance, due=due, z_PDE=z))
    return rows


def plane(sides: tuple[int, ...], steps: int) -> list[dict]:
    """Three Gaussians on VP forward, refined in space alone."""
    sde, gm, rows = VP(beta_max=3.0), three_gaussians(), []
    for side in sides:
        points, area, x = square(4.5, side)
        start = exact(gm, sde, points, 0.2)
        p = fokker_planck(start, [x, x], np.linspace(0.2, 1.0, steps + 1), sde=sde)
        error, before = l1(p, exact(gm, sde, points, 1.0), area), rows[-1] if rows else row()
        ratio = before["PDE"] / error if rows else None
        mass = abs(float((p - start).sum())) * area[0] ** 2
        rows.append(row(what=f"forward, VP, {side} x {side}", PDE=error, ratio=ratio, before=before["ratio"], mass=mass))
    return rows


def square(extent: float, side: int):
    """Centres of side x side cells [n, n, 2], their widths, and the centres along an axis."""
    x = np.linspace(-extent, extent, side)
    return np.stack(np.meshgrid(x, x, indexing="ij"), -1), [x[1] - x[0]] * 2, x


def models(out, quick: bool) -> dict[str, runs.Run]:
    """8 gaussians on VP, in float32 as every run: to be trained before 64-bit types are in force."""
    found = {}
    for training in (500, 4000):
        config = toy.get_config("8gaussians")
        config.sde.name = "VP"
        config.model.width = 128
        config.optim.ema = 0.99
        config.training.steps = training
        found[f"after {training} steps"] = trained(config, out / f"8gaussians_{training}", quick)
    return found


def learned(out, of: dict[str, runs.Run], side: int, steps: int, n: int) -> dict[str, list[dict]]:
    """8 gaussians from the prior by the exact and by learned scores, on side x side cells: of each score a row, one of the ODE's particles, one on
    cells twice as wide and one on cells of half the width."""
    sde, eps, rows, dataset = VP(), 0.01, {}, next(iter(of.values())).dataset
    gm = eight_gaussians_in_x(dataset)
    grids_of = {s: square(4.25, s) for s in (side // 2 + 1, side, 2 * side - 1)}  # each with every second centre of the next
    (fewer, wide, _), (points, area, x), _ = grids_of.values()
    priors = {s: jnp.exp(sde.prior_log_prob(jnp.asarray(c[0].reshape(-1, 2)))).reshape(s, s) for s, c in grids_of.items()}
    true, x_T = exact(gm, sde, points, eps), sde.prior_sample(jax.random.key(0), (n, 2), jnp.float64)
    draws = gm.sample(jax.random.key(3), 100 * n // 40).reshape(100, -1, 2)
    times = grids.quadratic(sde, steps, eps)
    for name, den in {"exact score": gm.denoiser(sde), **{name: run.denoiser() for name, run in of.items()}}.items():
        dtype = jax.tree.leaves(den.fn)[0].dtype

        def density(x, t, den=den, dtype=dtype):
            log_p = log_likelihood(den, x.reshape(-1, 2).astype(dtype), rtol=1e-3, atol=1e-3, eps=t).log_prob
            return jnp.exp(log_p.astype(jnp.float64)).reshape(x.shape[:2])

        process, p, found, shown = reverse_process(den), priors[side], x_T, []
        for i, part in enumerate(np.split(np.arange(steps), 5)):
            between = sde.T - times[part[0] : part[-1] + 2]
            p = fokker_planck(p, [x, x], between, *process)
            found = particles(jax.random.fold_in(jax.random.key(2), i), found, between, process)
            t = times[part[-1] + 1]
            shown.append((f"t = {t:.2f}", np.asarray(p[::2, ::2]), np.asarray(found), np.asarray(density(fewer, t))))
        figures.learned(shown, x[-1], out / f"{name.replace(' ', '_')}.png")
        ode = density(points, eps)
        to_pde, to_ode = (agreement(np.asarray(found), q, [x, x], 200, 3) for q in (p, ode))
        rows[name] = [
            row(
                what=f"8 gaussians, {name}", PDE=l1(p, true, area), mass=abs(float((p - priors[side]).sum())) * area[0] ** 2,
                ODE=l1(ode, true, area), PDE_ODE=l1(p, ode, area), SDE_PDE=to_pde.distance, SDE_ODE=to_ode.distance,
                due=to_pde.due, z_PDE=to_pde.z, z_ODE=to_ode.z, KL=kl(true, p, area),
                bound=girsanov(den, gm.denoiser(sde), draws, eps, sde.T, jax.random.key(4)),
            )
        ]  # fmt: skip
        flowed = sample_adaptive(den, x_T.astype(dtype), eps=eps).x
        distance, due, z = agreement(np.asarray(flowed, np.float64), p, [x, x], 200, 3)
        said = f"8 gaussians, {name}: the ODE's particles against the PDE"
        rows[name].append(row(what=said, SDE_PDE=distance, due=due, z_PDE=z, KL=kl(true, ode, area)))
        for s in (side // 2 + 1, 2 * side - 1):
            cells, widths, axis = grids_of[s]
            p = fokker_planck(priors[s], [axis, axis], sde.T - times, *process)
            apart = l1(p, ode[::2, ::2], wide) if s < side else l1(p[::2, ::2], ode, area)
            l1s = {"PDE": l1(p, exact(gm, sde, cells, eps), widths), "PDE_ODE": apart}
            rows[name].append(row(what=f"8 gaussians, {name}: {s} x {s} cells", mass=abs(float((p - priors[s]).sum())) * widths[0] ** 2, **l1s))
    return rows


def gates_of_learned(rows: dict[str, list[dict]]) -> dict[str, bool]:
    """Those of the module docstring, of rows of `learned`."""
    (grid, *_), (few, *_), (more, *_) = rows.values()
    apart = [[coarse["PDE-ODE"], own["PDE-ODE"], fine["PDE-ODE"]] for own, _, coarse, fine in rows.values()]
    of_grid, scores = apart[0], apart[1:]
    masses = [r["mass"] for own, _, coarse, fine in rows.values() for r in (own, coarse, fine)]
    return {
        "PDE of any score: within 3 standard errors of its particles": all(abs(r["z PDE"]) <= Z for r, *_ in rows.values()),
        "PDE of any score: mass to 1e-8": max(masses) <= 1e-8,
        "PDE-ODE of the exact score: the grid's alone": all(3 <= a / b <= 5 for a, b in itertools.pairwise(of_grid)) and abs(grid["z ODE"]) <= Z,
        "PDE-ODE of a learned score: not the grid's": all(abs(a[1] - a[2]) <= of_grid[1] and a[2] >= 5 * of_grid[2] for a in scores),
        "KL <= Girsanov's bound, but for the grid's": abs(grid["KL"]) <= 0.01 and all(r["KL"] <= r["bound"] + abs(grid["KL"]) for r in (few, more)),
        "PDE-ODE, KL and bound are smaller after more training": all(more[name] < few[name] for name in ("PDE-ODE", "KL", "bound")),
    }


def views(sde: SDE, cells: int, frames: int, steps: int, n: int) -> dict[str, tuple]:
    """For pictures, forward and in reverse, at `frames` times, `steps` steps apart: x, times t, PDE, ODE, particles, six paths of the ODE."""
    gm, x, shown = mixture(), line(sde, cells), {}
    den, points = gm.denoiser(sde), jnp.asarray(x[:, None])
    for name, (process, _, first, last) in directions(gm, sde).items():
        t = np.linspace(np.sqrt(first), np.sqrt(last), (frames - 1) * steps + 1) ** 2
        s = t if name == "forward" else sde.T - t
        p, found = exact(gm, sde, points, first), drawn(gm, sde, first, n)
        begin = jnp.quantile(found[:, 0], jnp.linspace(0.06, 0.94, 6))[:, None]
        pdes, draws, odes, paths = [p], [found], [p], [begin]
        for i in range(0, len(t) - 1, steps):
            between = s[i : i + steps + 1]
            p, found = fokker_planck(p, [x], between, *process), particles(jax.random.fold_in(jax.random.key(2), i), found, between, process)
            there, change = flow(den, points, t[i + steps], first)
            pdes.append(p), draws.append(found), odes.append(exact(gm, sde, there, first) * jnp.exp(change))
            paths.append(flow(den, begin, first, t[i + steps])[0])
        shown[name] = x, t[::steps], *(np.stack([np.asarray(a).reshape(len(a)) for a in found]) for found in (pdes, odes, draws, paths))
    return shown


def pictures(out, quick: bool) -> None:
    """densities.png and views.gif, of five seconds."""
    cells, n = (60, 500) if quick else (400, 20_000)
    rows = {}
    for sde in (VP(),) if quick else (VP(), Linear()):
        for name, (x, t, pde, ode, found, _) in views(sde, cells, 5, 4 if quick else 100, n).items():
            rows[f"{type(sde).__name__}, {name}"] = [(f"t = {t[i]:.2f}", x, found[i], pde[i], ode[i]) for i in range(len(t))]
    figures.densities(rows, out / "densities.png")
    seen = views(VP(), cells, 3 if quick else 25, 4 if quick else 20, 500 if quick else 4000)
    inner = np.abs(line(VP(), cells)) <= 3.2
    legs = [
        (f"VP, {name}: PDE (blue), SDE (grey), ODE (red)", t, pde[:, inner], ode[:, inner], found, paths)
        for name, (_, t, pde, ode, found, paths) in seen.items()
    ]
    figures.animation(line(VP(), cells)[inner], legs, out / "views.gif")


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and the gates of the module docstring."""
    of = models(out, quick)
    with jax.enable_x64(True):
        paths = (VP(),) if quick else tuple(c() for c in SDE.__subclasses__())
        of_paths = list(itertools.chain.from_iterable(of_a_path(sde, *((80, 80, 500) if quick else (1200, 1000, 40_000))) for sde in paths))
        wrong = controls(*((80, 80, 100) if quick else (1200, 1000, 40_000)))
        refined = plane(*(((12, 24), 16) if quick else ((60, 120, 240), 200)))
        of_models = learned(out, of, *((21, 10, 400) if quick else (81, 100, 10_000)))
        pictures(out, quick)
    rows = of_paths + wrong + refined + list(itertools.chain.from_iterable(of_models.values()))
    if quick:
        return rows, {}
    return rows, {
        **gates_of_paths(of_paths),
        "controls are refused": all(r["z PDE"] > 10 for r in wrong),
        "PDE of the plane: of second order in space, mass to 1e-8": 3.5 <= refined[-1]["ratio"] <= 4.5 and all(r["mass"] <= 1e-8 for r in refined),
        **gates_of_learned(of_models),
    }
