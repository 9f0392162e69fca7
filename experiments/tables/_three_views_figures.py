"""Figures and the animation of --table=three_views. Each function writes one file and returns its path."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.animation import FuncAnimation, PillowWriter

from experiments.plots import save, subplots

SDE_COLOUR, PDE_COLOUR, ODE_COLOUR = "0.75", "tab:blue", "tab:red"


def _line(axis, x, drawn, pde, ode, bins: int = 60):
    axis.hist(drawn, bins, range=(x[0], x[-1]), density=True, color=SDE_COLOUR, label="SDE: particles")
    axis.plot(x, pde, color=PDE_COLOUR, linewidth=1.4, label="PDE: grid")
    axis.plot(x, ode, color=ODE_COLOUR, linewidth=1.4, linestyle=(0, (3, 3)), label="ODE: change of variables")


def densities(rows: dict[str, list[tuple]], path: str | Path) -> Path:
    """A row of panels for each process and a panel for each of its moments (title, x [n], particles [k], PDE [n], ODE [n])."""
    columns = max(len(row) for row in rows.values())
    figure, axes = subplots(len(rows), columns, figsize=(2.7 * columns, 2.1 * len(rows)), squeeze=False, layout="constrained")
    for line, (name, row) in zip(axes, rows.items()):
        for axis, (title, *views) in zip(line, row):
            _line(axis, *views)
            axis.set_title(title, fontsize=9)
            axis.set(yticks=[], ylim=(0, None), xlim=(-3.5, 3.5))
        line[0].set_ylabel(name, fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return save(figure, path)


def learned(shown: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]], extent: float, path: str | Path) -> Path:
    """A column for each moment (title, PDE [n, n], SDE particles [k, 2], ODE [n, n]): the three views and, below them, ODE - PDE, which is 0 with an
    exact score. Densities have colours from 0 to the PDE's greatest of that moment, the differences of a half of it to both sides."""
    figure, axes = subplots(4, len(shown), figsize=(2.3 * len(shown) + 0.8, 9.2), layout="constrained", sharex=True, sharey=True)
    square = (-extent, extent, -extent, extent)
    image = lambda axis, values, **options: axis.imshow(values.T, origin="lower", extent=square, **options)
    for column, (title, pde, drawn, ode) in zip(axes.T, shown):
        top = float(pde.max())
        histogram = np.histogram2d(*drawn.T, bins=pde.shape[0], range=[[-extent, extent]] * 2, density=True)[0]
        for axis, values in zip(column, (pde, histogram, ode)):
            image(axis, values, vmin=0, vmax=top, cmap="magma")
        difference = image(column[3], (ode - pde) / top, vmin=-0.5, vmax=0.5, cmap="RdBu_r")
        column[0].set_title(title, fontsize=9)
    for axis, name in zip(axes[:, 0], ("PDE of the reverse SDE", "SDE: particles", "ODE: change of variables", "ODE - PDE")):
        axis.set_ylabel(name, fontsize=9)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[], xlim=(-3, 3), ylim=(-3, 3))
    figure.colorbar(difference, ax=axes[3], shrink=0.9, label="of the PDE's greatest")
    return save(figure, path)


def animation(x: Float[np.ndarray, " n"], legs: list[tuple], path: str | Path, frames_a_second: int = 10) -> Path:
    """One after another, each leg (title, times [f], PDE [f, n], ODE [f, n], particles [f, k], paths of the ODE [f, m]): on the left the PDE's
    density over time, each scaled to its greatest, with paths of particles and of the ODE; on the right the three densities of the moment."""
    figure, (left, right) = subplots(1, 2, figsize=(7, 3.2), width_ratios=(1.7, 1), layout="constrained", sharey=True)
    frames = [(leg, i) for leg in legs for i in range(len(leg[1]))]
    top = max(1.1 * float(np.max(leg[2])) for leg in legs)

    def draw(frame):
        (title, times, pde, ode, drawn, paths), i = frame
        left.clear(), right.clear()
        shown = np.where(np.arange(len(times))[:, None] <= i, pde, np.nan)
        left.pcolormesh(times, x, (shown / np.nanmax(pde, 1, keepdims=True)).T, cmap="Blues", vmin=0, vmax=1.3, shading="nearest")
        left.plot(times[: i + 1], drawn[: i + 1, :6], color="0.25", linewidth=0.6)
        left.plot(times[: i + 1], paths[: i + 1], color=ODE_COLOUR, linewidth=1.0)
        span = (times[0], times[-1])
        left.set(title=title, xlim=span, ylim=(x[0], x[-1]), xlabel="t (0: data, T: prior)", ylabel="x")
        right.hist(drawn[i], 60, range=(x[0], x[-1]), density=True, orientation="horizontal", color=SDE_COLOUR, label="SDE: particles")
        right.plot(pde[i], x, color=PDE_COLOUR, linewidth=1.4, label="PDE: grid")
        right.plot(ode[i], x, color=ODE_COLOUR, linewidth=1.4, linestyle=(0, (3, 3)), label="ODE: change of variables")
        right.set(title=f"t = {times[i]:.2f}", xlim=(0, top), xticks=[], xlabel="density")
        right.legend(fontsize=7, loc="upper right")

    made = FuncAnimation(figure, draw, frames, init_func=lambda: None)
    made.save(path, PillowWriter(fps=frames_a_second), dpi=72)
    return Path(path)
