"""Table 2 of [SF]2M (Tong et al. 2023, 2307.03672): flows between sets of the plane, by how their ends are joined.

MLP 3x64 (selu) by AdamW at 1e-3 (weight decay 1e-5) on 10,000 points of each set; constant noise of 0.1 in I-CFM and OT-CFM, of FM at the data alone;
RF is trained again on the pairs of I-CFM's flow; SB is [SF]2M-exact, a bridge of scale 0.1, the default of their code, between OT's pairs, by its
ODE, and by its SDE.
100 Euler steps from test points of the source. W2: exact, to as many test points of the data; floor: of these to others. NPE: |energy of the paths -
W2^2(source, data)| / W2^2(source, data). Means over seeds, with standard errors; published: mean and standard deviation over five seeds.
Short: 3 seeds, 2500 steps of batch 128, 2000 test points, so that W2 is above the published. --paper: theirs, 5 seeds (42 to 46), 20,000 steps of
batch 512, of which the weights of least loss on held-out points are taken, 10,000 points; hours, and 8 GB.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from experiments import plots
from experiments.assignment import assignment
from experiments.couplings import Coupling, costs
from experiments.data import Batches, Dataset
from experiments.kept import write_text
from experiments.metrics import standard_error, wasserstein2
from experiments.toy import TOYS, ring
from models import MLP
from samplers.bridge import sample_bridge
from sde_lib.interpolants import NEAR, Interpolant

SEEDS = {"short": (42, 43, 44), "paper": (42, 43, 44, 45, 46)}
SOURCES = {"published": "Tong et al. 2023, 2307.03672, table 2", "NPE published": "the same"}
TASKS = {
    "N -> 8gaussians": ("", "8gaussians"),
    "moons -> 8gaussians": ("moons", "8gaussians"),
    "N -> moons": ("", "moons"),
    "N -> scurve": ("", "s_curve"),
}
PUBLISHED = {  # W2 of the tasks, mean and standard deviation
    "OT-CFM": ((0.303, 0.043), (0.601, 0.027), (0.130, 0.016), (0.144, 0.028)),
    "I-CFM": ((0.373, 0.103), (1.557, 0.407), (0.178, 0.014), (0.242, 0.141)),
    "FM": ((0.343, 0.058), None, (0.209, 0.055), (0.198, 0.037)),
    "RF": ((0.421, 0.071), (1.525, 0.330), (0.283, 0.045), (0.345, 0.079)),
    "SB": ((0.275, 0.058), (0.726, 0.137), (0.124, 0.023), (0.128, 0.005)),
}
NPE = {"OT-CFM": (0.031, 0.015, 0.083, 0.027), "I-CFM": (0.202, 2.680, 0.891, 0.856)}
NOISE = 0.1
CONSTANT, BRIDGE = Interpolant(constant=NOISE), Interpolant(bridge=NOISE)
STEPS, CHUNK, LOOK = 100, 500, 200  # of Euler; of training whose pairs are in memory; to the next loss on held-out points, ten epochs
NET = MLP(width=64, depth=3, activation="selu")


def points(task: str, seed: int, n: int) -> dict[str, np.ndarray]:
    """10,000 for training and n for testing of both ends, and n more of the data."""
    source, target = TASKS[task]
    rng = np.random.default_rng(seed)
    draw = lambda name, n: TOYS[name][0](rng, n, "torchcfm") if name else rng.standard_normal((n, 2))
    found = {"x0": draw(target, 10_000), "x1": draw(source, 10_000), "test": draw(target, n), "start": draw(source, n), "others": draw(target, n)}
    if source:  # theirs of two data sets: moons standardized and 7 times as large, the ring of radius 12 with a standard deviation of 1.5
        mean, std = found["x1"].mean(0), found["x1"].std(0)
        found |= {name: 7 * (found[name] - mean) / std for name in ("x1", "start")}
        ring_of = lambda n: ring(12.0)[rng.integers(8, size=n)] + 1.5 * rng.standard_normal((n, 2))
        found |= {name: ring_of(len(found[name])) for name in ("x0", "test", "others")}
    return {name: a.astype(np.float32) for name, a in found.items()}


def plain(x: np.ndarray) -> Dataset:
    return Dataset("points", {"train": x}, {"train": np.zeros(len(x), np.int32)}, 0.0, 1.0)


def pairs(name: str, x0: np.ndarray, x1: np.ndarray | None, batch: int, seed: int, steps: range):
    """Batches [len(steps), B, 2] of x_0 and of what `experiments.couplings` joins it with: x1, or fresh noise."""
    data, source = plain(x0), None if x1 is None else plain(x1)
    couple = Coupling(name, batch, False, 0.0, data, source, source and Batches(source, 1, seed + 1), 1.0, seed)
    stream = Batches(data, batch, seed)
    made = [couple(stream[k]) for k in steps]
    return np.stack([m["value"] for m in made]), np.stack([m["source"] for m in made])


def loss(params, interpolant, of_noise: bool, x0, x1, key):
    """Of the velocity, or of z, for the score."""
    t_key, z_key = jax.random.split(key)
    t = NEAR + (1 - 2 * NEAR) * jax.random.uniform(t_key, (len(x0),))
    z = jax.random.normal(z_key, x0.shape)
    target = z if of_noise else interpolant.velocity(x0, x1, z, t)
    return jnp.mean((NET.apply({"params": params}, interpolant.point(x0, x1, z, t), t) - target) ** 2)


OPTIMIZER = optax.adamw(1e-3, weight_decay=1e-5)


@partial(jax.jit, static_argnames=("interpolant", "of_noise"))
def advance(carry, interpolant, of_noise, x0, x1, keys):
    """Runs [R] after steps on x0, x1 [R, S, B, 2]; keys [R]."""

    def one(carry, x0, x1, key):
        def step(carry, row):
            (params, opt_state), (i, x0, x1) = carry, row
            grads = jax.grad(loss)(params, interpolant, of_noise, x0, x1, jax.random.fold_in(key, i))
            updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, carry, (jnp.arange(len(x0)), x0, x1))[0]

    return jax.vmap(one)(carry, x0, x1, keys)


def folded(keys, number: int):
    """Other keys [R], of the same runs."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


@partial(jax.jit, static_argnames=("interpolant", "of_noise"))
def least(best, params, interpolant, of_noise, x0, x1, keys):
    """(loss [R], params [R, ...]) of those runs whose loss on x0, x1 [R, n, 2] is below that of `best`, and `best` of the others."""
    found = jax.vmap(lambda *of: loss(of[0], interpolant, of_noise, *of[1:]))(params, x0, x1, keys)
    pick = lambda new, old: jnp.where(jnp.reshape(found < best[0], (-1,) + (1,) * (new.ndim - 1)), new, old)
    return jax.tree.map(pick, (found, params), best)


def train(make, batch: int, steps: int, kinds: dict, sets: list, held: list | None, keys):
    """The parameters [R, ...] of each kind {name: (interpolant, of_noise)} after `steps` on make(sets, run, range) -> x0, x1; if there are held-out
    sets, those that had the least loss on one epoch of them, seen every LOOK steps: so is the checkpoint chosen that the published code tests."""
    runs, chunk, init = len(sets), LOOK if held else CHUNK, lambda key: NET.init(key, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
    params = jax.vmap(init)(keys)
    carry = {name: (params, jax.vmap(OPTIMIZER.init)(params)) for name in kinds}
    best = {name: (jnp.full(runs, jnp.inf), params) for name in kinds}
    with ThreadPoolExecutor() as pool:  # SciPy's assignment lets others run

        def made(of, k):
            return (np.stack(c) for c in zip(*pool.map(lambda r: make(of, r, k), range(runs))))

        looked = [c.reshape(runs, -1, 2) for c in made(held, range(10_000 // batch))] if held else None
        for start in range(0, steps, chunk):
            x0, x1 = made(sets, range(start, min(start + chunk, steps)))
            for i, (name, kind) in enumerate(kinds.items()):
                own = folded(keys, 2 * (start * len(kinds) + i))
                carry[name] = advance(carry[name], *kind, x0, x1, own)
                if held:
                    best[name] = least(best[name], carry[name][0], *kind, *looked, folded(own, 1))
    return {name: best[name][1] if held else carry[name][0] for name in kinds}


def _apply(params, x, t):
    return NET.apply({"params": params}, x, t)


def flow(params, x_T, noise=None, interpolant=CONSTANT, keys=None):
    """Paths [R, STEPS + 1, n, 2] from x_T [R, n, 2]: by Euler's method, or of a bridge with its noise by Euler-Maruyama."""
    if noise is None:
        return jax.vmap(lambda p, x: sample_bridge(interpolant, Partial(_apply, p), None, x, np.linspace(1, 0, STEPS + 1), path=True))(params, x_T)
    times, strength = np.linspace(1 - NEAR, NEAR, STEPS + 1), lambda t: np.full_like(t, interpolant.bridge**2 / 2)
    one = lambda p, q, x, key: sample_bridge(interpolant, Partial(_apply, p), Partial(_apply, q), x, times, strength, key, True)
    return jax.vmap(one)(params, noise, x_T, keys)


def measure(out, seeds, steps: int, batch: int, n: int, held_out: bool = False) -> dict:
    """{"method, task": {"W2", "NPE", "floor"}}, lists over seeds; flows are drawn to out/cfm_2d.png. held_out: see `train`."""
    cases = [(task, seed) for task in TASKS for seed in seeds]
    sets = [points(task, seed, n) for task, seed in cases]
    held = [points(task, seed + 1000, 1) for task, seed in cases] if held_out else None
    start = np.stack([s["start"] for s in sets])
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), list(TASKS).index(task)) for task, seed in cases])  # a run is one of itself
    clock = time.perf_counter()

    def told(what):
        print(f"{what}: {time.perf_counter() - clock:.0f} s", flush=True)

    made = lambda name: lambda of, r, k: pairs(name, of[r]["x0"], of[r]["x1"], batch, cases[r][1], k)
    trained = lambda make, kinds: train(make, batch, steps, kinds, sets, held, keys)
    free = trained(made("independent"), {"I-CFM": (CONSTANT, False)})

    def smoothed(of, r, k):
        """FM's path from N(x_0, NOISE^2) to x_1 (2210.02747, eq. 20) is the straight one from x_0 + NOISE x_1."""
        x0, x1 = made("independent")(of, r, k)
        return x0 + np.float32(NOISE) * x1, x1

    free |= trained(smoothed, {"FM": (Interpolant(), False)})
    told("I-CFM, FM")
    joined = trained(made("ot"), {"OT-CFM": (CONSTANT, False), "SB": (BRIDGE, False), "score": (BRIDGE, True)})
    told("OT-CFM, SB")
    for of in filter(None, (sets, held)):
        ends = np.asarray(flow(free["I-CFM"], np.stack([s["x1"] for s in of]))[:, -1])
        of[:] = [s | {"end": end} for s, end in zip(of, ends)]

    def reflow(of, r, k):
        position = np.arange(k.start, k.stop)[:, None] * batch + np.arange(batch)
        index = Batches(plain(of[r]["end"]), batch, cases[r][1]).index(position)
        return of[r]["end"][index], of[r]["x1"][index]

    again = trained(reflow, {"RF": (Interpolant(), False)})
    told("RF")
    paths = {name: np.asarray(flow(params, start)) for name, params in {**free, **again, "OT-CFM": joined["OT-CFM"], "SB": joined["SB"]}.items()}
    paths["SB, SDE"] = np.asarray(flow(joined["SB"], start, joined["score"], BRIDGE, folded(keys, 1)))

    def judged(r):
        cost = costs(*(s.astype(np.float64) for s in (start[r], sets[r]["test"])))
        least = cost[np.arange(n), assignment(cost)].mean()
        floor = wasserstein2(sets[r]["others"], sets[r]["test"])
        energy = lambda path: STEPS * np.mean(np.sum(np.diff(path.astype(np.float64), axis=0) ** 2, -1), 1).sum()
        row = lambda path: {"W2": wasserstein2(path[-1], sets[r]["test"]), "NPE": float(abs(energy(path) - least) / least), "floor": floor}
        return {name: row(path[r]) for name, path in paths.items() if not (name == "FM" and TASKS[cases[r][0]][0])}

    found = {}
    with ThreadPoolExecutor(2) as pool:  # each takes 4 GB of 10,000 points
        for (task, _), rows in zip(cases, pool.map(judged, range(len(cases)))):
            for name, row in rows.items():
                for column, value in row.items():
                    found.setdefault(f"{name}, {task}", {}).setdefault(column, []).append(value)
    told("W2")
    shown = [r for r, (task, seed) in enumerate(cases) if seed == seeds[0]]
    panels = {f"{name}, {cases[r][0]}": paths[name][r][:, :300] for name in ("I-CFM", "OT-CFM") for r in shown}
    plots.flows(panels, {cases[r][0]: sets[r]["test"] for r in shown}, out / "cfm_2d.png")
    return found


def table(found: dict) -> tuple[list[dict], dict[str, bool]]:
    """The rows of what `measure` found, and gates of OT-CFM beside I-CFM."""
    mean = lambda of, column: float(np.mean(of[column]))
    error = lambda of, column: standard_error(of[column]) if len(of[column]) > 1 else None
    rows = []
    for name in ("OT-CFM", "I-CFM", "FM", "RF", "SB", "SB, SDE"):
        for i, task in enumerate(TASKS):
            if (of := found.get(f"{name}, {task}")) is None:
                continue
            theirs, path = PUBLISHED.get(name, (None,) * 4)[i], "SDE" not in name
            rows.append({
                "method": name, "task": task, "W2": mean(of, "W2"), "± W2": error(of, "W2"), "floor": mean(of, "floor"),
                "published": f"{theirs[0]} ± {theirs[1]}" if theirs else None, "NPE": mean(of, "NPE") if path else None,
                "± NPE": error(of, "NPE") if path else None, "NPE published": NPE[name][i] if name in NPE else None,
                "sd from it": (mean(of, "W2") - theirs[0]) / theirs[1] if theirs else None,
            })  # fmt: skip
    joined, free = ({task: found[f"{name}, {task}"] for task in TASKS} for name in ("OT-CFM", "I-CFM"))
    halved = {f"{task}: OT-CFM has less than half of I-CFM's NPE": mean(joined[task], "NPE") < 0.5 * mean(free[task], "NPE") for task in TASKS}
    no_more = mean(joined["moons -> 8gaussians"], "W2") <= mean(free["moons -> 8gaussians"], "W2")
    return rows, halved | {"moons -> 8gaussians: OT-CFM has no more W2 than I-CFM": no_more}


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows and gates of a few seeds, trained for a shorter time."""
    if quick:
        return table(measure(out, SEEDS["short"][:1], 3, 16, 32))[0], {}
    return table(measure(out, SEEDS["short"], 2500, 128, 2000))


def paper(out) -> tuple[list[dict], dict[str, bool]]:
    """The same by the paper's protocol, and whether every W2 is within 3 published standard deviations of the published mean, too. Each seed is
    kept, in out/seed_42.json and so on: the same command goes on after the last that is there. Raises ValueError if one is of other settings."""
    together, size = {}, {"steps": 20_000, "batch": 512, "n": 10_000, "held_out": True}
    settings = size | {"look": LOOK, "noise": NOISE, "network": str(NET), "points": 10_000}
    for seed in SEEDS["paper"]:
        kept = out / f"seed_{seed}.json"
        if not kept.exists():
            write_text(kept, json.dumps({"settings": settings, "found": measure(out, (seed,), **size)}))
        said = json.loads(kept.read_text())
        if said.get("settings") != settings:
            raise ValueError(f"{kept} is of {said.get('settings', 'unknown settings')}: expected {settings}; move it away, or name another --out")
        for name, of in said["found"].items():
            for column, values in of.items():
                together.setdefault(name, {}).setdefault(column, []).extend(values)
    rows, gates = table(together)
    of = {f"{row['task']}: {row['method']} is within 3 published deviations of the published W2": row["sd from it"] for row in rows}
    return rows, gates | {name: abs(deviations) <= 3 for name, deviations in of.items() if deviations is not None}
