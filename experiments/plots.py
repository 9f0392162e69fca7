"""Figures. Every function writes one PNG and returns its path."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from scipy import stats


def subplots(rows: int = 1, columns: int = 1, figsize: tuple | None = None, layout: str | None = None, **axes):
    """`pyplot.subplots` without pyplot: a figure and its axes, which need no closing.

    Pyplot would choose a backend for the whole process, and a notebook would lose its own.
    """
    figure = Figure(figsize=figsize, layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **axes)


def save(figure, path: str | Path) -> Path:
    """Write a figure, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def tile(images: UInt8[np.ndarray, "n h w c"], columns: int, pad: int = 1) -> np.ndarray:
    """One image of all, row by row, white between them; [H, W] for one channel, else [H, W, C]."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        canvas[y * (h + pad) + pad : (y + 1) * (h + pad), x * (w + pad) + pad : (x + 1) * (w + pad)] = image
    return canvas.squeeze(-1) if c == 1 else canvas


def to_uint8(levels: np.ndarray, count: int) -> UInt8[np.ndarray, "n h w c"]:
    """Levels 0..count-1 spread over 0..255, rounded."""
    return np.round(levels * (255.0 / (count - 1))).astype(np.uint8)


def _pixel_image(canvas: np.ndarray, path, size: int = 640) -> Path:
    """The image with whole-number magnification to about `size` pixels, no resampling."""
    factor = max(1, size // max(canvas.shape[:2]))
    canvas = canvas.repeat(factor, 0).repeat(factor, 1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    imsave(path, canvas, cmap="gray", vmin=0, vmax=255)
    return Path(path)


def grid(images: UInt8[np.ndarray, "n h w c"], path: str | Path) -> Path:
    """A grid of floor(sqrt(n)) columns."""
    return _pixel_image(tile(images, max(1, int(np.sqrt(len(images))))), path)


def side_by_side(left: UInt8[np.ndarray, "n h w c"], right: UInt8[np.ndarray, "n h w c"], path: str | Path) -> Path:
    """Two grids of images of one shape with a white gap between them, samples on the left and data on the right."""
    columns = max(1, int(np.sqrt(len(left))))
    a, b = tile(left, columns), tile(right[: len(left)], columns)
    gap = np.full((a.shape[0], left.shape[2], *a.shape[2:]), 255, np.uint8)
    return _pixel_image(np.concatenate([a, gap, b], 1), path, size=1200)


def trajectory(images: UInt8[np.ndarray, "s n h w c"], path: str | Path) -> Path:
    """One sample a row, one time a column: from noise on the left to data on the right."""
    rows = images.swapaxes(0, 1)
    return _pixel_image(tile(rows.reshape(-1, *rows.shape[2:]), rows.shape[1]), path, size=1200)


def columns(panels: dict[str, dict[str, UInt8[np.ndarray, "n h w c"]]], path: str | Path) -> Path:
    """Panels below one another, each named, of columns of as many images, with titles."""
    figure, axes = subplots(len(panels), squeeze=False, figsize=(7.5, sum(1.1 * len(next(iter(p.values()))) for p in panels.values()) + 0.3))
    for axis, (name, panel) in zip(axes[:, 0], panels.items()):
        n, h, w, _ = next(iter(panel.values())).shape
        axis.imshow(tile(np.stack(list(panel.values()), 1).reshape(n * len(panel), h, w, -1), len(panel)), cmap="gray", vmin=0, vmax=255)
        axis.set_xticks((np.arange(len(panel)) + 0.5) * (w + 1), list(panel), fontsize=7)
        axis.set_yticks([])
        axis.set_ylabel(name, fontsize=8)
        axis.tick_params(length=0, labelbottom=False, labeltop=True)
        axis.spines[:].set_visible(False)
    return save(figure, path)


def panels(panels: dict[str, UInt8[np.ndarray, "r k h w c"]], rows: list[str], columns: list[str], path: str | Path) -> Path:
    """Grids of images side by side, each under its title, with a word beside each row and below each column."""
    shape = next(iter(panels.values())).shape
    size = shape[1] * len(panels), shape[0] * shape[2] / shape[3]
    figure, axes = subplots(1, len(panels), figsize=(0.6 * size[0] + 1, 0.6 * size[1] + 0.6), squeeze=False, layout="constrained")
    for axis, (title, images) in zip(axes[0], panels.items()):
        r, k, h, w, _ = images.shape
        axis.imshow(tile(images.reshape(r * k, *images.shape[2:]), k), cmap="gray", vmin=0, vmax=255)
        axis.set_xticks(np.arange(k) * (w + 1) + 0.5 + w / 2, columns, fontsize=7)
        axis.set_yticks(np.arange(r) * (h + 1) + 0.5 + h / 2, rows, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return save(figure, path)


def latents(z: Float[np.ndarray, "n d"], path: str | Path) -> Path:
    """The coordinates of latents over N(0, 1), and their squared lengths over the chi-squared law of d degrees, both by n."""
    d, values = z.shape[1], (z**2).sum(1)
    figure, axes = subplots(1, 2, figsize=(9, 3.2))
    for axis, drawn, law, name in zip(axes, (z.ravel(), values), (stats.norm, stats.chi2(d)), ("coordinate of x_T / sigma(T)", "squared length")):
        low, high = min(drawn.min(), law.ppf(1e-4)), max(drawn.max(), law.isf(1e-4))
        at = np.linspace(low, high, 200)
        axis.hist(drawn, min(40, 4 + len(z) // 8), density=True, alpha=0.6, label=f"latents (n = {len(z)}, d = {d})")
        axis.plot(at, law.pdf(at), color="k", linewidth=1, label="N(0, I)")
        axis.set(xlabel=name, ylim=(0, 1.35 * axis.get_ylim()[1]))
        axis.legend(fontsize=7)
    return save(figure, path)


def identifiability(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"], path: str | Path) -> Path:
    """Latents of the same examples by two models (2011.13456, figures 7 and 8): the first 100 coordinates of the first example, all against all, and
    the differences of the same examples beside those of each example and the next."""
    figure, axes = subplots(1, 3, figsize=(13, 3.6), width_ratios=(1.8, 1, 1), layout="constrained")
    for z, style in ((a, {"marker": "o"}), (b, {"marker": "x", "linestyle": "--"})):
        axes[0].plot(z[0, :100], markersize=3, linewidth=0.8, **style)
    axes[0].legend(["model A", "model B"], fontsize=7)
    axes[0].set(xlabel="coordinate of one example", ylabel="latent / sigma(T)")
    axes[1].scatter(a.ravel(), b.ravel(), s=1, alpha=min(1.0, 3e3 / a.size), linewidths=0)
    axes[1].set(xlabel="model A", ylabel="model B", aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
    pairs = {"same example": b, "shuffled": np.roll(b, 1, 0)}
    for name, other in pairs.items():
        difference = np.abs(a - other).ravel()
        axes[2].hist(difference, np.linspace(0, 4, 41), density=True, alpha=0.6, label=f"{name}: mean {difference.mean():.3f}")
    axes[2].legend(fontsize=7)
    axes[2].set(xlabel="|A - B|", ylabel="density")
    return save(figure, path)


def scatter(samples: Float[np.ndarray, "n 2"], reference: Float[np.ndarray, "n 2"], path: str | Path) -> Path:
    """Samples beside data, if there are any, on equal axes."""
    panels = {name: points for name, points in (("data", reference), ("samples", samples)) if len(points)}
    figure, axes = subplots(1, len(panels), figsize=(4.5 * len(panels), 4.5), sharex=True, sharey=True, squeeze=False)
    for axis, (name, points) in zip(axes[0], panels.items()):
        axis.scatter(*points.T, s=2, alpha=0.4, linewidths=0)
        axis.set(title=f"{name} (n = {len(points)})", aspect="equal")
    first = next(iter(panels.values()))
    low, high = first.min(0), first.max(0)
    margin = 0.25 * (high - low)
    axes[0, 0].set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    return save(figure, path)


def trajectories(panels: dict[str, Float[np.ndarray, "s n 2"]], path: str | Path) -> Path:
    """The paths of 2-D samples of several models side by side: the prior grey, the data blue, each path a line."""
    figure, axes = subplots(1, len(panels), figsize=(4.5 * len(panels), 4.5), squeeze=False, sharex=True, sharey=True, layout="constrained")
    for axis, (title, points) in zip(axes[0], panels.items()):
        axis.plot(points[:, :, 0], points[:, :, 1], color="tab:orange", alpha=0.5, linewidth=0.6, zorder=1)
        axis.scatter(*points[0].T, s=5, color="0.5", label="t = T", zorder=2)
        axis.scatter(*points[-1].T, s=5, color="tab:blue", label="t = 0", zorder=3)
        axis.set(title=title, aspect="equal")
    axes[0, 0].legend(fontsize=8)
    return save(figure, path)


def against_steps(panels: dict[str, tuple[float, dict[str, dict[int, float]]]], path: str | Path) -> Path:
    """A panel for each quantity, with its exact value and a line of it against the steps for each method."""
    figure, axes = subplots(1, len(panels), figsize=(4.5 * len(panels), 3.5), squeeze=False)
    for axis, (title, (exact, lines)) in zip(axes[0], panels.items()):
        axis.axhline(exact, color="k", linestyle="--", linewidth=1, label="exact")
        for name, values in lines.items():
            axis.semilogx(list(values), list(values.values()), marker="o", markersize=4, label=name)
        axis.set(title=title, xlabel="steps")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    return save(figure, path)


def loss_curve(workdir: str | Path) -> Path | None:
    """loss.png of log.jsonl; None if nothing has been logged. Steps that a resumed run logged twice count once."""
    lines = [line for line in open(Path(workdir) / "log.jsonl") if line.endswith("}\n")]  # a kill may leave half a line
    rows = {row["step"]: row for row in map(json.loads, lines) if "loss" in row}  # all steps of a line may have been skipped
    if not rows:
        return None
    steps = sorted(rows)
    losses = [rows[s]["loss"] for s in steps]
    figure, axis = subplots(figsize=(6, 3.5))
    axis.plot(steps, losses)
    axis.set(xlabel="step", ylabel="training loss", yscale="log" if min(losses) > 0 else "linear")  # score matching's is negative
    axis.grid(alpha=0.3, which="both")
    return save(figure, Path(workdir) / "loss.png")


def histogram(values: dict[str, np.ndarray], unit: str, path: str | Path) -> Path:
    """Overlaid histograms of per-example scores."""
    figure, axis = subplots(figsize=(6, 3.5))
    bins = np.histogram_bin_edges(np.concatenate(list(values.values())), 40)
    for name, v in values.items():
        axis.hist(v, bins, alpha=0.6, density=True, label=f"{name}: {v.mean():.3f} ± {v.std(ddof=1) / np.sqrt(len(v)):.3f}")
    axis.set(xlabel=unit, ylabel="density")
    axis.legend()
    return save(figure, path)


def solver_errors(panels: dict[str, dict[str, dict[int, float]]], path: str | Path) -> Path:
    """Error against network evaluations, log-log, a panel per problem and a line per solver (the same colour and marker in all).

    The first solver sets the range: errors above four times its largest are cut off.
    """
    figure, axes = subplots(1, len(panels), figsize=(6.5 * len(panels), 6), squeeze=False)
    names = list(next(iter(panels.values())))
    styles = {
        n: {"color": matplotlib.colormaps["tab20"](i % 20), "marker": "osv^Dx*"[i % 7], "linestyle": ["-", "--"][i >= 20]}
        for i, n in enumerate(names)
    }
    for axis, (title, solvers) in zip(axes[0], panels.items()):
        for name, errors in solvers.items():
            if errors:
                axis.loglog(list(errors), list(errors.values()), markersize=4, linewidth=1, label=name, **styles[name])
        ticks = sorted({n for errors in solvers.values() for n in errors if n in (3, 5, 6, 8, 10, 15, 20, 30, 50)})
        axis.set(xlabel="network evaluations", ylabel="distance to the exact flow", title=title)
        axis.set_ylim(top=4 * max(solvers[names[0]].values()))
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return save(figure, path)


def scores(panels: dict[tuple[str, str], dict[str, np.ndarray]], floor: float, unit: str, path: str | Path) -> Path:
    """{(panel, line): {column: values of sets}}: mean and standard error of each column, a panel and a line by name; the floor dashed."""
    names = list(dict.fromkeys(panel for panel, _ in panels))
    figure, axes = subplots(1, len(names), figsize=(4.5 * len(names), 4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names):
        for i, ((_, line), columns) in enumerate((key, value) for key, value in panels.items() if key[0] == name):
            means = [v.mean() for v in columns.values()]
            errors = [v.std(ddof=1) / np.sqrt(len(v)) for v in columns.values()]
            axis.errorbar(np.arange(len(columns)) + 0.06 * (i - 1), means, errors, fmt="osv"[i % 3], capsize=3, label=line)
        axis.axhline(floor, color="0.6", linestyle="--", label="test set")
        axis.set(title=name, yscale="log")
        axis.set_xticks(range(len(columns)), columns)
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].set(ylabel=unit)
    axes[0, -1].legend(fontsize=8)
    return save(figure, path)


def discretization(curves: dict[tuple[str, str], dict[int, float]], variances: dict[float, float], path: str | Path) -> Path:
    """{(SDE, predictor): {steps: relative error}} log-log, a panel an SDE, and the corrector's {r: variance over v} beside 1 + r^2."""
    names = list(dict.fromkeys(panel for panel, _ in curves))
    figure, axes = subplots(1, len(names) + 1, figsize=(4.2 * (len(names) + 1), 4), layout="constrained")
    for axis, name in zip(axes, names):
        for i, ((_, line), errors) in enumerate((key, value) for key, value in curves.items() if key[0] == name):
            axis.loglog(list(errors), np.abs(list(errors.values())), marker="osv^D"[i % 5], markersize=4, linewidth=1, label=line)
        axis.set(title=name, xlabel="steps N", ylim=(1e-5, 10))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="relative error of the standard deviation")
    axes[0].legend(fontsize=7)
    r = np.linspace(0, 1.1 * max(variances), 100)
    axes[-1].plot(r, 1 + r**2, color="0.6", label="1 + r²")
    axes[-1].plot(list(variances), list(variances.values()), "o", label="measured")
    axes[-1].set(title="Langevin corrector", xlabel="r", ylabel="stationary variance / v")
    axes[-1].grid(alpha=0.3)
    axes[-1].legend(fontsize=8)
    return save(figure, path)


def guidance(panels: dict[str, np.ndarray], data: Float[np.ndarray, "n d"], curves: dict[str, list[dict]], path: str | Path) -> Path:
    """Samples of each way of guidance on the data (grey) in the first two coordinates; W2 and off of `tables.guidance`
    against omega, with two standard errors."""
    figure, axes = subplots(2, 4, figsize=(16, 6.5), layout="constrained")
    low, high = data[:, :2].min(0), data[:, :2].max(0)
    for axis, (title, x) in zip(axes.ravel(), panels.items()):
        axis.scatter(*data[:, :2].T, s=2, color="0.75", linewidths=0)
        axis.scatter(*x[:1500, :2].T, s=3, color="tab:red", linewidths=0)
        axis.set(title=title, xlim=(low[0], high[0] + 0.3), ylim=(low[1], high[1]), aspect="equal")
    for axis, name, title in ((axes[1, 2], "W2", "sliced W2 to the class"), (axes[1, 3], "off", "share outside its 99 % ellipsoid")):
        for way, rows in curves.items():
            x, y, error = ([row[column] for row in rows] for column in ("omega", name, f"± {name}"))
            axis.errorbar(x, y, 2 * np.array(error), marker="o", markersize=3, label=way)
        axis.set(xlabel="omega", title=title)
        axis.grid(alpha=0.3)
    axes[1, 2].legend(fontsize=8)
    return save(figure, path)


def strengths(times: np.ndarray, curves: dict[str, np.ndarray], samples: dict[str, dict[str, np.ndarray]], path: str | Path) -> Path:
    """D(t) by name, and per path {name: samples [n, 2]} their densities in the first coordinate, each by its own kernel estimate."""
    figure, axes = subplots(1, 1 + len(samples), figsize=(4.8 * (1 + len(samples)), 4), layout="constrained")
    for i, (name, curve) in enumerate(curves.items()):
        axes[0].plot(times, curve, label=name, linestyle="--" if i % 2 else "-")
    axes[0].set(title="D(t), linear path", xlabel="t (0: data)", ylim=(0, 2))
    axes[0].legend(fontsize=8)
    for axis, (title, found) in zip(axes[1:], samples.items()):
        x = np.linspace(*np.quantile(found["ODE"][:, 0], (0.0, 1.0)), 300)
        for i, (name, values) in enumerate(found.items()):
            wrong = name in ("noise alone", "gnobitab/RectifiedFlow")
            axis.plot(x, stats.gaussian_kde(values[:, 0], 0.1)(x), ":" if wrong else "-", color=f"C{i}", linewidth=1.8 if wrong else 1, label=name)
        axis.set(title=f"samples by each D, {title}", xlabel="first coordinate", ylabel="density", ylim=(0, 1.5 * axis.get_ylim()[1]))
        axis.legend(fontsize=7, ncols=2, loc="upper center")
    return save(figure, path)


def flows(panels: dict[str, np.ndarray], data: dict[str, Float[np.ndarray, "n 2"]], path: str | Path) -> Path:
    """{"method, task": paths [P, n, 2]}: from the start (black) to the end (red) on the data of its task (grey), a row for each method."""
    figure, axes = subplots(len(panels) // len(data), len(data), figsize=(4 * len(data), 4 * len(panels) // len(data)), squeeze=False)
    for axis, (title, lines) in zip(axes.ravel(), panels.items()):
        axis.scatter(*data[title.split(", ")[1]][:2000].T, s=2, color="0.8", linewidths=0)
        axis.plot(*np.moveaxis(lines, -1, 0), color="tab:olive", linewidth=0.3, alpha=0.6)
        for points, colour in ((lines[0], "k"), (lines[-1], "tab:red")):
            axis.scatter(*points.T, s=4, color=colour, linewidths=0)
        axis.set(title=title, aspect="equal", xticks=[], yticks=[])
    return save(figure, path)


def clouds(panels: dict[str, Float[np.ndarray, "n 2"]], path: str | Path) -> Path:
    """Samples of the plane of several models, a panel each; a point has the same colour in all: by the angle at which it ends in the last."""
    angle, rows = np.arctan2(*list(panels.values())[-1].T[::-1]), -(-len(panels) // 6)
    figure, axes = subplots(rows, 6, figsize=(12, 2.2 * rows), squeeze=False, sharex=True, sharey=True, layout="constrained")
    for axis, (title, points) in zip(axes.ravel(), panels.items()):
        axis.scatter(*points[:3000].T, s=1, c=angle[:3000], cmap="hsv", linewidths=0)
        axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
        axis.set_title(title, fontsize=8)
    for axis in axes.ravel()[len(panels) :]:
        axis.set_visible(False)
    return save(figure, path)


def by_steps(panels: dict[str, Float[np.ndarray, "n 2"]], path: str | Path) -> Path:
    """Points of the plane, a panel each, four a row, on the axes of the last, the data (grey)."""
    last = list(panels.values())[-1]
    centre, margin = last.mean(0), 0.65 * np.ptp(last, axis=0).max()
    rows = -(-len(panels) // 4)
    figure, axes = subplots(rows, 4, figsize=(10, 2.7 * rows), squeeze=False, sharex=True, sharey=True, layout="constrained")
    for axis, (title, points) in zip(axes.ravel(), panels.items()):
        axis.scatter(*points.T, s=3, color="tab:gray" if points is last else "tab:blue", linewidths=0)
        axis.set(aspect="equal", title=title, xlim=centre[0] + margin * np.array([-1, 1]), ylim=centre[1] + margin * np.array([-1, 1]))
    for axis in axes.ravel()[len(panels) :]:
        axis.set_visible(False)
    return save(figure, path)


def quality(curves: dict[str, dict[int, np.ndarray]], floor: float, unit: str, path: str | Path) -> Path:
    """{method: {evaluations: values of groups}}: mean and standard error, log-log where all is positive; the floor dashed."""
    figure, axis = subplots(figsize=(7, 4))
    for i, (name, series) in enumerate(curves.items()):
        means = [v.mean() for v in series.values()]
        errors = [v.std(ddof=1) / np.sqrt(len(v)) for v in series.values()]
        axis.errorbar(list(series), means, errors, marker="osv^D"[i % 5], markersize=4, linewidth=1, capsize=3, label=name)
    axis.axhline(floor, color="0.4", linestyle="--", linewidth=1, label="test data")
    positive = min(floor, *(v.mean() for series in curves.values() for v in series.values())) > 0
    ticks = []
    for n in sorted({n for series in curves.values() for n in series}):
        ticks += [n] if not ticks or n > 1.15 * ticks[-1] else []
    axis.set(xscale="log", yscale="log" if positive else "linear", xlabel="network evaluations", ylabel=unit)
    axis.set_xticks(ticks, ticks)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return save(figure, path)
