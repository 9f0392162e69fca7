"""Figures of the primer: what the closed forms of its numbers look like beside the numerical solutions."""

import jax
import numpy as np
from jax.tree_util import Partial
from scipy.stats import norm

from experiments.plots import save, subplots
from experiments.tables import _primer_models as models
from experiments.tables import _primer_ordinary as ordinary
from experiments.tables import _primer_stochastic as stochastic
from samplers import sample
from sde_lib import Linear

EXACT, EULER, HEUN, RANDOM = "k", "tab:orange", "tab:blue", "teal"


def keys(seed: int, n: int):
    return jax.random.split(jax.random.key(seed), n)


def fields(path) -> None:
    """Stream lines (grey), exact flows from points (dots), and velocities that the text gives (red, half as long)."""
    ring = [(2.4 * np.cos(a), 2.4 * np.sin(a)) for a in np.arange(8) * np.pi / 4 + np.pi / 8]
    starts = {"linear": ring, "circular": [(r, 0.0) for r in (0.5, 1.0, 1.5, 2.0, 2.5)]}
    starts["saddle"] = [(s * 0.05 * k, side * 2.5) for k in (1, 4, 10) for s in (-1, 1) for side in (-1, 1)]
    shown = {"linear": ((-1.0, 0.0),), "circular": ((1.0, 0.0), (0.0, 1.0)), "saddle": ((1.0, 1.0),)}
    ends, titles = {"linear": 1.0, "circular": 1.5 * np.pi, "saddle": 1.0}, {"linear": "-2 x", "circular": "(-x2, x1)", "saddle": "(2 x1, -2 x2)"}
    figure, axes = subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    label = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    grid = np.linspace(-3, 3, 25)
    points = np.stack(np.meshgrid(grid, grid))
    for axis, (name, a) in zip(axes, ordinary.FIELDS.items()):
        axis.streamplot(grid, grid, *np.einsum("ij,jyx->iyx", a, points), color="0.82", linewidth=0.7, density=0.9, arrowsize=0.8)
        for x in starts[name]:
            flow = ordinary.solve(Partial(ordinary.matrix, a), x, np.linspace(0, ends[name], 101))
            axis.plot(*flow.T, color=HEUN, linewidth=1.4)
            axis.plot(*x, "o", color=HEUN, markersize=4)
        for x in shown[name]:
            u = a @ x
            axis.annotate("", np.add(x, 0.5 * u), x, arrowprops={"arrowstyle": "-|>", "color": "tab:red", "linewidth": 1.8})
            axis.annotate(f"u = ({u[0]:g}, {u[1]:g})", x, (8, 6), textcoords="offset points", color="tab:red", fontsize=9, bbox=label)
        axis.set(title=f"{name}: u = {titles[name]}, t to {ends[name]:.3g}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xlabel="x1")
    axes[0].set(ylabel="x2")
    save(figure, path)


def steps(path) -> None:
    """Euler and Heun on dx/dt = -2 x, and their errors beside those that the text gives."""
    figure, (left, right) = subplots(1, 2, figsize=(11, 4), layout="constrained")
    t = np.linspace(0, 1, 201)
    left.plot(t, 4 * np.exp(-2 * t), color=EXACT, label="4 e^(-2t)")
    for label, n, solver, colour, style in (
        ("Euler, n = 4", 4, ordinary.EULER, EULER, "o-"),
        ("Euler, n = 10", 10, ordinary.EULER, EULER, "s--"),
        ("Heun, n = 4", 4, ordinary.HEUN, HEUN, "^-"),
    ):
        at = np.linspace(0, 1, n + 1)
        left.plot(at, ordinary.solve(ordinary.decay, 4.0, at, solver, 1 / n), style, color=colour, markersize=4, linewidth=1, label=label)
    left.set(xlabel="t", ylabel="x(t)", title="dx/dt = -2 x from 4")
    left.legend(fontsize=8)
    n, true = np.unique(np.geomspace(2, 500, 40).astype(int)), np.exp(-2)
    error = lambda n, heun: abs(ordinary.decayed(n, heun) - true) / true
    right.loglog(n, [error(k, False) for k in n], color=EULER, label="Euler")
    right.loglog(2 * n, [error(k, True) for k in n], color=HEUN, label="Heun")
    right.loglog((4, 10, 50, 100), (0.25, 0.1, 0.02, 0.01), "x", color="tab:red", label="Euler, as in seed 001")
    right.set(xlabel="evaluations", ylabel="relative error at t = 1", title="Errors", xlim=(3, 600))
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    save(figure, path)


def rocket_car(path) -> None:
    """The burst, the wind tunnel and the errors there; below, 100 runs in turbulence with bands of one and two standard deviations."""
    figure, axes = subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    t = np.linspace(0, 10, 1001)
    ways = [("Euler, dt = 1", ordinary.EULER, 100, EULER, "-"), ("Heun, dt = 1", ordinary.HEUN, 100, HEUN, "-")]
    ways.append(("Euler, dt = 0.1", ordinary.EULER, 10, EULER, ":"))
    cars = ((ordinary.burst, np.log1p, "burst: dx/dt = 1/(t + 1)"), (ordinary.car, ordinary.car_position, "wind tunnel: dx/dt = 1/(t + 1) - x/10"))
    for axis, (field, exact, title) in zip(axes[0], cars):
        axis.plot(t, exact(t), color=EXACT, linewidth=2, label="exact")
        for label, solver, every, colour, style in ways:
            x = ordinary.solve(field, 0.0, t, solver, every / 100)
            axis.plot(t[::every], x[::every], style, color=colour, linewidth=2 if style == ":" else 1.2, label=label)
        axis.set(title=title, xlabel="t", ylabel="x(t)")
        axis.legend(fontsize=8)
    for label, solver, every, colour, style in (*ways, ("Heun, dt = 0.1", ordinary.HEUN, 10, HEUN, ":")):
        error = np.abs(ordinary.solve(ordinary.car, 0.0, t, solver, every / 100) - ordinary.car_position(t))
        axes[0, 2].semilogy(t[every::every], error[every::every], style, color=colour, linewidth=2 if style == ":" else 1.2, label=label)
    axes[0, 2].set(title="wind tunnel: errors", xlabel="t", ylabel="|error|", ylim=(1e-4, 1))
    axes[0, 2].grid(alpha=0.3)
    axes[0, 2].legend(fontsize=8, ncols=2)
    for axis, sigma in zip(axes[1], (0.1, 0.3, 1.0)):
        runs = stochastic.walk(ordinary.car, sigma, 0.0, t, 0.01, keys(3, 100))
        band(axis, t, ordinary.car_position(t), sigma * np.sqrt(stochastic.car_variance(t)), runs)
        axis.set(title=f"turbulence: + {sigma:g} dw, 100 runs", xlabel="t", ylim=(-4.5, 7), ylabel="x(t)")
    axes[1, 0].legend(fontsize=8, loc="lower right")
    save(figure, path)


def band(axis, t, mean, std, runs) -> None:
    """Runs [n, k] with their mean and bands of one and two standard deviations."""
    axis.plot(t[::2], runs[:, ::2].T, color=RANDOM, linewidth=0.5, alpha=0.5 if len(runs) < 30 else 0.25)
    for k, style in ((1, "--"), (2, ":")):
        axis.plot(t, mean + k * std, style, color=EXACT, linewidth=1.2, label=f"± {k} standard deviation{'s' * (k > 1)}")
        axis.plot(t, mean - k * std, style, color=EXACT, linewidth=1.2)
    axis.plot(t, mean, color=EXACT, linewidth=1.6, label="mean: the ODE")


def traces(path) -> None:
    """Brownian motion, the Ornstein-Uhlenbeck process from 3, and its stationary law."""
    figure, (left, middle, right) = subplots(1, 3, figsize=(14, 4), layout="constrained", width_ratios=(1, 1, 0.8))
    t = np.linspace(0, 4, 401)
    band(left, t, 0 * t, np.sqrt(t), stochastic.walk(stochastic.still, 1.0, 0.0, t, 0.01, keys(0, 12)))
    left.set(title="Brownian motion: standard deviation sqrt(t)", xlabel="t", ylabel="W(t)", ylim=(-6, 5))
    left.legend(fontsize=8, loc="lower left")
    mean, variance = stochastic.ou_moments(t)
    runs = stochastic.walk(ordinary.decay, stochastic.SIGMA, stochastic.START, t, 0.01, keys(2, 12))
    band(middle, t, mean, np.sqrt(variance), runs)
    middle.set(title="Ornstein-Uhlenbeck: dx = -2 x dt + dw from 3", xlabel="t", ylabel="x(t)")
    ends = stochastic.walk(ordinary.decay, stochastic.SIGMA, stochastic.START, [0.0, 4.0], 0.01, keys(2, 4000))[:, -1]
    x = np.linspace(-2.2, 2.2, 201)
    right.hist(ends, 40, density=True, color=RANDOM, alpha=0.45, label="x(4), 4000 paths")
    right.plot(x, norm.pdf(x, scale=0.5), color=EXACT, label="N(0, 0.25)")
    right.set(title="its stationary law: N(0, 0.25)", xlabel="x")
    right.legend(fontsize=8)
    save(figure, path)


def maps(path) -> None:
    """N(0, 1) on the left of each panel to N(0, 4) on the right, at random and by the factor 2; three points in colour."""
    figure, axes = subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
    rng, z = np.random.default_rng(0), np.linspace(-7, 7, 401)
    x0 = rng.standard_normal(120)
    marked = {1.5: "tab:red", 0.0: "tab:green", -1.0: "tab:purple"}
    for axis, title, to in (
        (axes[0], "x1 = x0 + N(0, 3): another draw each time", lambda x, n: x + np.sqrt(3) * rng.standard_normal(n)),
        (axes[1], "x1 = 2 x0: always the same", lambda x, n: np.full(n, 2.0 * x)),
    ):
        axis.fill_betweenx(z, -norm.pdf(z), 0, color="0.8")
        axis.fill_betweenx(z, 1, 1 + norm.pdf(z, scale=2), color="0.8")
        axis.plot([0 * x0, 1 + 0 * x0], [x0, [to(x, 1)[0] for x in x0]], color="0.75", linewidth=0.5)
        for x, colour in marked.items():
            ends = to(x, 10)
            axis.plot([np.zeros(10), np.ones(10)], [np.full(10, x), ends], color=colour, linewidth=1)
            axis.plot(np.ones(10), ends, "o", color=colour, markersize=3.5)
            axis.plot(0, x, "o", color=colour, markersize=6)
        axis.set(title=title, xticks=(-0.2, 1.1), xticklabels=("p0 = N(0, 1)", "p1 = N(0, 4)"), ylim=(-6.5, 6.5))
        axis.tick_params(axis="x", length=0)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0].set(ylabel="x")
    save(figure, path)


def showcase(path) -> None:
    """Four Gaussians by one exact model: eight paths and 400 ends (black) over the density of the data, and the first coordinate over p_t."""
    den, line = models.four_gaussians().denoiser(Linear()), models.line(models.CENTRE, models.STD)
    panels = {"ODE": models.with_noise(0.0)} | {f"SDE, sigma = {s:g}": models.with_noise(s) for s in models.NOISES[1:]}
    panels["sigma = 2 to t = 0.5, then ODE"] = models.early(2.0)
    panels["as printed: sigma = 1, no score"] = models.as_printed(1.0)
    times, grid = np.linspace(models.LAST, 0, 401), np.linspace(-3, 3, 121)
    x_T = Linear().prior_sample(jax.random.key(20), (400, 2))
    cells = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.exp(np.asarray(models.four_gaussians().log_prob(cells))).reshape(121, 121)
    columns = [np.exp(np.asarray(line.marginal_log_prob(Linear(), grid[:, None], t))) for t in np.linspace(1, 0, 101)]
    figure, axes = subplots(2, len(panels), figsize=(3.2 * len(panels), 6.4), sharex="row", sharey="row", layout="constrained")
    for (above, below), (title, solver) in zip(axes.T, panels.items()):
        xs = np.asarray(sample(den, x_T, times, solver, jax.random.key(21), path=True))
        above.contourf(grid, grid, density, 12, cmap="Blues")
        above.scatter(*xs[-1].T, s=3, color="k", linewidths=0)
        for k in range(8):
            above.plot(*xs[:, k].T, color=f"C{k + 1}", linewidth=0.8)
            above.plot(*xs[0, k], "o", color=f"C{k + 1}", markersize=4, markeredgecolor="k", markeredgewidth=0.5)
            below.plot(times, xs[:, k, 0], color=f"C{k + 1}", linewidth=0.9)
        above.set(title=title, aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
        below.imshow(np.stack(columns, 1), extent=(1, 0, -3, 3), origin="lower", aspect="auto", cmap="Blues")
        below.set(xlabel="t (0: data)", xlim=(1, 0), ylim=(-3, 3))
    axes[0, 0].set(ylabel="x2")
    axes[1, 0].set(ylabel="x1")
    save(figure, path)
