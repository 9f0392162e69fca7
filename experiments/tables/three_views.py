r"""One process, three views: the SDE's particles, the Fokker-Planck PDE on a grid, the probability-flow ODE's change of variables.

    SDE   dx = f x dt + g dw                                    a draw
    PDE   dp/dt = -div(f x p) + g^2/2 laplacian p               the density of all draws
    ODE   dx/dt = v = f x - g^2/2 score,   d log p/dt = -div v  along each path (2011.13456, eq. 13 and 39)

grad p = p score makes the PDE's last term div(g^2/2 score p), and so the PDE the continuity equation dp/dt = -div(v p) of the ODE: all three carry
one density. So do those of the reverse SDE dx = [f x - g^2 score] dt + g dw, run from T down: its noise takes back half of its score. A learned score
is not grad log p of what its reverse SDE makes: that SDE and its own PDE still agree, the ODE has another density, further off the more it misses.

Forward and reverse, all paths: a 1-D mixture of two Gaussians from 0.01 T to 0.9 T and back from its density there with the exact score (0.6 T of VE
and NCSN and 0.02 T of EDM, later wider than the grid; nearer to the ends f or g of some is infinite). "PDE", "ODE": L1 to the exact density, of 1200
cells in 1000 steps and of 600 points at tolerance 1e-7. "ratio": of the error of half the cells and steps to this one; "before": a quarter to half.
"mass": its error. "SDE": sum of |share - probability| of 40,000 particles, 500 steps of weak order 2, to the PDE's in 60 bins; "due": what so many
draws from the PDE's density have on average; "z": Pearson's statistic in its standard errors, seeds fixed. Gates: PDE <= 6e-4, mass <= 1e-8, ratios
3.5 to 4.5, ODE <= 1e-6, |z| <= 3. Beside them: particles (slope of "SDE" in their number -0.5 +- 0.1), tolerances of the ODE, cells of a 2-D grid
alone (three Gaussians on VP, 200 steps: the last ratio 3.5 to 4.5). Controls, z > 10: the ODE's drift with the SDE's noise, and 5 % more noise.

Learned: an MLP (3x128, velocity, VP) on 8 gaussians, after 500 and 4000 steps, and the exact score, from the prior at T to 0.01: 100 steps, 80 x 80
cells, 10,000 particles in 200 bins. "PDE", "ODE": L1 of the reverse SDE's and of the flow's density (`log_likelihood`) to the exact one at 0.01.
"PDE-ODE": their distance; the ODE's own particles against that PDE have a row without a gate. "KL": of the exact density to the PDE's (in that row,
to the ODE's), in nats; "bound": Girsanov's, \int g^2/2 E|score - exact|^2 dt, which the KL of the ODE need not keep (2101.09258). Gates: |z| <= 3,
KL <= bound (plus the KL of the exact row, the grid's own), and PDE-ODE, KL and bound are each smaller after 4000 steps than after 500.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from configs import toy
from experiments import runs
from experiments.tables import _three_views_figures as figures
from experiments.tables._three_views import Process, agreement, flow, forward, girsanov, kl, l1, particles, reverse
from experiments.tables._training import trained
from experiments.toy import EIGHT_GAUSSIANS, ring
from samplers import grids, log_likelihood, sample_adaptive
from sde_lib import EDM, NCSN, SDE, VE, VP, GaussianMixture, Linear
from sde_lib.fokker_planck import fokker_planck

SEEDS = {"training": 0, "examples": 0, "noise": 1, "particles": 2, "Girsanov": (3, 4)}
COLUMNS = ("what", "PDE", "ratio", "before", "mass", "ODE", "PDE-ODE", "SDE", "due", "z", "KL", "bound")
ENDS = {EDM: 0.02, VE: 0.6, NCSN: 0.6}  # of T; elsewhere 0.9
RATIO, Z = (3.5, 4.5), 3.0


def row(**found) -> dict:
    return {name: found.get(name.replace("-", "_")) for name in COLUMNS}


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
    return {"forward": (forward(sde), first, first, last), "reverse": (reverse(gm.denoiser(sde)), sde.T - last, last, first)}


def of_a_path(sde: SDE, cells: int, steps: int, n: int) -> list[dict]:
    """Forward and in reverse, each view against the exact density or the PDE's."""
    gm, rows = mixture(), []
    for name, (process, s, first, last) in directions(gm, sde).items():
        times, errors = lambda k, s=s, apart=abs(last - first): np.linspace(s, s + apart, k + 1), []
        for part in (4, 2, 1):
            x = line(sde, cells // part)
            start, h = exact(gm, sde, x[:, None], first), x[1] - x[0]
            p = fokker_planck(start, [x], times(steps // part), *process)
            errors.append(l1(p, exact(gm, sde, x[:, None], last), [h]))
        points = jnp.asarray(x[::2, None])
        there, change = flow(gm.denoiser(sde), points, last, first)
        ode = exact(gm, sde, there, first) * jnp.exp(change)
        found = particles(jax.random.key(2), drawn(gm, sde, first, n), times(steps // 2), process)
        distance, due, z = agreement(np.asarray(found), p, [x], 60)
        rows.append(
            row(
                what=f"{name}, {type(sde).__name__}", PDE=errors[2], ratio=errors[1] / errors[2], before=errors[0] / errors[1],
                mass=abs(float((p - start).sum()) * h), ODE=l1(ode, exact(gm, sde, points, last), [2 * h]), PDE_ODE=l1(p[::2], ode, [2 * h]),
                SDE=distance, due=due, z=z,
            )
        )  # fmt: skip
    return rows


def refined(cells: int, steps: int, counts: tuple[int, ...], sides: tuple[int, ...]) -> tuple[list[dict], bool]:
    """In the number of particles, the ODE's tolerance and the cells of a plane; and controls."""
    sde, gm, rows = VP(), mixture(), []
    process, s, first, last = directions(gm, sde)["reverse"]
    x, times = line(sde, cells), lambda k: np.linspace(s, s + first - last, k + 1)
    p = fokker_planck(exact(gm, sde, x[:, None], first), [x], times(steps), *process)
    start = drawn(gm, sde, first, max(counts))

    def against(name: str, found):
        distance, due, z = agreement(np.asarray(found), p, [x], 60)
        rows.append(row(what=f"reverse, VP: {name}", SDE=distance, due=due, z=z))
        return distance, z

    found = particles(jax.random.key(2), start, times(steps // 2), process)
    distances = [against(f"{n} particles", found[:n])[0] for n in counts]
    passed = abs(np.polyfit(np.log(counts), np.log(distances), 1)[0] + 0.5) <= 0.1
    for name, wrong in (("ODE's drift, SDE's noise", reverse(gm.denoiser(sde), 0.0)), ("5 % more noise", reverse(gm.denoiser(sde), 1.0, 1.05))):
        passed &= against(f"control, {name}", particles(jax.random.key(2), start, times(steps // 2), wrong))[1] > 10
    points, errors = jnp.asarray(x[::2, None]), []
    for tolerance in (1e-3, 1e-5, 1e-7):
        there, change = flow(gm.denoiser(sde), points, last, first, tolerance)
        errors.append(l1(exact(gm, sde, there, first) * jnp.exp(change), exact(gm, sde, points, last), [2 * (x[1] - x[0])]))
        rows.append(row(what=f"reverse, VP: ODE at tolerance {tolerance:g}", ODE=errors[-1]))
    passed &= errors[0] > errors[1] > errors[2]
    sde, gm, before = VP(beta_max=3.0), three_gaussians(), [None, None]
    for side in sides:
        x = np.linspace(-4.5, 4.5, side)
        plane, area = np.stack(np.meshgrid(x, x, indexing="ij"), -1), [x[1] - x[0]] * 2
        start = exact(gm, sde, plane, 0.2)
        p = fokker_planck(start, [x, x], np.linspace(0.2, 1.0, steps // 5 + 1), sde=sde)
        error = l1(p, exact(gm, sde, plane, 1.0), area)
        ratio = before[0] / error if before[0] else None
        mass = abs(float((p - start).sum())) * area[0] ** 2
        rows.append(row(what=f"forward, VP, {side} x {side}", PDE=error, ratio=ratio, before=before[1], mass=mass))
        before = [error, ratio]
    return rows, bool(passed and RATIO[0] <= ratio <= RATIO[1])


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


def learned(out, of: dict[str, runs.Run], side: int, steps: int, n: int) -> tuple[list[dict], bool]:
    """8 gaussians from the prior by the exact and by learned scores."""
    sde, eps, rows, dataset = VP(), 0.01, [], next(iter(of.values())).dataset
    radius, std = EIGHT_GAUSSIANS["ffjord"]
    gm = GaussianMixture((ring(radius) - dataset.shift) / dataset.scale, np.full(8, std / dataset.scale))
    x = np.linspace(-4.25, 4.25, side)
    plane, area = np.stack(np.meshgrid(x, x, indexing="ij"), -1), [x[1] - x[0]] * 2
    fewer, wide = plane[::2, ::2], [2 * h for h in area]  # for the ODE, whose error is not the grid's
    prior = jnp.exp(sde.prior_log_prob(jnp.asarray(plane.reshape(-1, 2)))).reshape(side, side)
    true, x_T = exact(gm, sde, plane, eps), sde.prior_sample(jax.random.key(0), (n, 2), jnp.float64)
    draws = gm.sample(jax.random.key(3), 100 * n // 40).reshape(100, -1, 2)
    times = grids.quadratic(sde, steps, eps)
    for name, den in {"exact score": gm.denoiser(sde), **{name: run.denoiser() for name, run in of.items()}}.items():
        dtype = jax.tree.leaves(den.fn)[0].dtype
        p, found, shown = prior, x_T, []
        for i, part in enumerate(np.split(np.arange(steps), 5)):
            between = sde.T - times[part[0] : part[-1] + 2]
            p = fokker_planck(p, [x, x], between, *reverse(den))
            found = particles(jax.random.fold_in(jax.random.key(2), i), found, between, reverse(den))
            t = times[part[-1] + 1]
            log_p = log_likelihood(den, fewer.reshape(-1, 2).astype(dtype), rtol=1e-3, atol=1e-3, eps=t).log_prob
            ode = jnp.exp(log_p.astype(jnp.float64)).reshape(fewer.shape[:2])
            shown.append((f"t = {t:.2f}", np.asarray(p[::2, ::2]), np.asarray(found), np.asarray(ode)))
        figures.learned(shown, x[-1], out / f"{name.replace(' ', '_')}.png")
        distance, due, z = agreement(np.asarray(found), p, [x, x], 200, 4)
        rows.append(
            row(
                what=f"8 gaussians, {name}", PDE=l1(p, true, area), mass=abs(float((p - prior).sum())) * area[0] ** 2,
                ODE=l1(ode, true[::2, ::2], wide), PDE_ODE=l1(p[::2, ::2], ode, wide), SDE=distance, due=due, z=z, KL=kl(true, p, area),
                bound=girsanov(den, gm.denoiser(sde), draws, eps, sde.T, jax.random.key(4)),
            )
        )  # fmt: skip
        flowed = sample_adaptive(den, x_T.astype(dtype), eps=eps).x
        distance, due, z = agreement(np.asarray(flowed, np.float64), p, [x, x], 200, 4)
        rows.append(
            row(what=f"8 gaussians, {name}: the ODE's particles against the PDE", SDE=distance, due=due, z=z, KL=kl(true[::2, ::2], ode, wide))
        )
    grid, few, more = rows[::2]
    near = all(abs(r["z"]) <= Z and r["mass"] <= 1e-8 and r["KL"] <= r["bound"] + abs(grid["KL"]) for r in (grid, few, more))
    return rows, near and all(more[name] < few[name] for name in ("PDE-ODE", "KL", "bound"))


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
    """Rows, and whether every gate of the module docstring holds."""
    of = models(out, quick)
    with jax.enable_x64(True):
        paths = (VP(),) if quick else tuple(c() for c in SDE.__subclasses__())
        rows = list(itertools.chain.from_iterable(of_a_path(sde, *((80, 80, 500) if quick else (1200, 1000, 40_000))) for sde in paths))
        more, passed = refined(*((80, 80, (50, 100), (12, 24)) if quick else (1200, 1000, (400, 4000, 40_000), (60, 120, 240))))
        for r in rows:
            close = r["PDE"] <= 6e-4 and r["mass"] <= 1e-8 and r["ODE"] <= 1e-6
            passed &= close and RATIO[0] <= min(r["ratio"], r["before"]) and max(r["ratio"], r["before"]) <= RATIO[1] and abs(r["z"]) <= Z
        of_models, well = learned(out, of, *((20, 10, 400) if quick else (80, 100, 10_000)))
        pictures(out, quick)
    return rows + more + of_models, {} if quick else {"PDE, SDE and ODE of every path": passed, "learned scores": well}
