r"""Couplings: which example of the source, at t = T, each training example is joined with, by `config.coupling`.

Within each group of `group` consecutive examples of the stream, (x_0, x_1) are n draws of the data and n of the source, with the costs |x_0 - x_1|^2:

| name        | partners                                                                                                                  |
|-------------|---------------------------------------------------------------------------------------------------------------------------|
| independent | as they come                                                                                                              |
| ot          | the assignment of least cost (Tong et al. 2023, 2302.00482; Pooladian et al. 2023, 2304.14772): both are the same multisets |
| sinkhorn    | of the plan of min <P, C> - regularization H(P), by ott-jax: x_1 is drawn from the row of x_0, a multiset on average only  |

sinkhorn tends to ot as regularization -> 0, to independent as it grows; regularization = 2 s^2 is the coupling of the Schroedinger bridge whose
Brownian motion has the scale s (2307.03672, proposition 3.1). A batch then has "source" [B, ...], what stands for eps in x_t = alpha x_0 + sigma eps:
x_1/sigma(T) of an example of a data set, or the prior's noise, x_1 = eps (its scale changes no assignment of least cost).
A pair is a function of seed, group and place in the stream: neither batches, nor hosts, nor resuming change it.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from experiments import data, units
from experiments.assignment import assignment
from sde_lib import SDE
from sde_lib.interpolants import Interpolant

NAMES = ("independent", "ot", "sinkhorn")
ITERATIONS = 50_000  # of Sinkhorn, at most


def costs(
    x: Float[np.ndarray, "n ..."], y: Float[np.ndarray, "n ..."], label: Int[np.ndarray, " n"] | None = None, regularization: float = 0.0
) -> Float[np.ndarray, "n n"]:
    """|x_i - y_j|^2, and where j is of another label than i more than any assignment within the labels costs, and so much that an entropic plan of
    this regularization has no mass there (a share of exp(-100))."""
    x, y = (a.reshape(len(a), -1) for a in (x, y))
    cost = np.sum(x**2, 1)[:, None] + np.sum(y**2, 1) - 2 * x @ y.T
    return cost if label is None else np.where(label[:, None] == label, cost, cost.max() * len(x) + 100 * regularization)


def ot(rng: np.random.Generator, cost: Float[np.ndarray, "n n"], regularization: float) -> Int[np.ndarray, " n"]:
    return assignment(cost)


@jax.jit
def _plan(cost: Float[Array, "n n"], regularization):
    from ott.geometry import epsilon_scheduler, geometry  # they take seconds to import, and start JAX's backend
    from ott.solvers.linear import solve

    falling = epsilon_scheduler.Epsilon(regularization, init=jnp.maximum(1.0, cost.mean() / regularization), decay=0.9)
    result = solve(geometry.Geometry(cost_matrix=cost, epsilon=falling), max_iterations=ITERATIONS)
    return result.matrix, result.converged


def sinkhorn(rng: np.random.Generator, cost: Float[np.ndarray, "n n"], regularization: float) -> Int[np.ndarray, " n"]:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # the accelerator is training
        plan, converged = _plan(cost.astype(np.float32), np.float32(regularization))
        if not converged:
            raise ValueError(f"config.coupling.regularization = {regularization}: no plan in {ITERATIONS} Sinkhorn iterations; expected more, or ot")
        rows = np.cumsum(np.asarray(plan, np.float64), 1)
    return np.sum(rows < rng.random((len(cost), 1)) * rows[:, -1:], 1)


def pairing(name: str, rng, x, y, label=None, regularization: float = 0.0) -> Int[np.ndarray, " n"]:
    """Which of y [n, ...] is joined with each of x [n, ...]; of the same label, if labels [n] are given. rng: a NumPy generator."""
    if name == "independent":
        return np.arange(len(x))
    return {"ot": ot, "sinkhorn": sinkhorn}[name](rng, costs(x, y, label, regularization), regularization)


def middles(dataset: data.Dataset, values) -> Float[np.ndarray, "n ..."]:
    """x of raw values, on the host: without the noise of dequantization, or of latents."""
    u = np.asarray(np.split(values, 2, -1)[0] if isinstance(dataset, data.Latents) else values, np.float32)
    return (u + (0.5 if dataset.levels else 0.0) - dataset.shift) / dataset.scale


def source_of(config: ConfigDict, dataset: data.Dataset) -> data.Dataset | None:
    """The data set that `config.source` names, scaled as the data that it is joined with, or None: the prior's noise. Raises what `data.load` raises,
    and ValueError if its examples have another shape."""
    if not config.source.name:
        return None
    if config.source.name in data.SOURCES:  # read to the values of the data that it is joined with
        source = data.load(config.source, dataset.facts | {"classes": [], "num_classes": 0})
    else:
        source = data.load(config.source)
        if not dataset.units.trivial:
            if source.levels:
                raise ValueError(f"config.coupling.source.name = '{config.source.name}' has levels, the data other units: expected both as npz")
            values = {split: units.values_of(source.raw(part), dataset.units, dataset.levels) for split, part in source.values.items()}
            source = replace(source, values=values)
    if source.shape != dataset.shape or isinstance(source, data.Latents):
        raise ValueError(f"config.coupling.source.name = '{config.source.name}' has examples {source.shape}: expected {dataset.shape}, as the data")
    return replace(source, shift=dataset.shift, scale=dataset.scale)


def interpolant(config: ConfigDict, sde: SDE) -> Interpolant | None:
    """The path of `config.coupling` where its gamma is not 0 (`sde_lib.interpolants`). Raises ValueError if gamma is negative."""
    if min(config.constant, config.bridge) < 0:
        raise ValueError(f"config.coupling.constant = {config.constant}, coupling.bridge = {config.bridge}: expected at least 0")
    return Interpolant(sde, config.constant, config.bridge) if config.constant or config.bridge else None


def coupled(config: ConfigDict) -> bool:
    """Whether `config.coupling` is anything but independent noise, which the loss draws by itself."""
    return config.name != "independent" or bool(config.source.name)


def within_class(config: ConfigDict, net) -> bool:
    """Whether partners change within a class alone: what `config.by_class` says, by default whether the network `net` is told the label.

    Given the label the source would otherwise not be the prior any more, and conditional samples of the trained model would be biased. Raises
    ValueError for a network of embeddings, of which no two examples need have the same; prints a line where a conditional model is coupled across
    its classes all the same.
    """
    if config.name == "independent" or net.none is None:
        return bool(config.by_class)
    if config.by_class is None and getattr(net.module, "embeddings", ()):
        raise ValueError(
            f"config.coupling.name = '{config.name}' of a model that is conditioned on embeddings joins noise across conditions, which biases its "
            "conditional samples: expected independent (or coupling.by_class = False, to accept the bias)"
        )
    if config.by_class is False:
        print(
            f"coupling.by_class = False: '{config.name}' joins noise across the conditions of a conditional model, whose conditional samples and "
            "likelihoods are biased; a new run without the option couples within each class"
        )
    return config.by_class is not False


@dataclass(frozen=True)
class Coupling:
    """batch -> batch with its "source" [B, ...]; values are mirrored here if the data set asks for it, as a pair is not mirrored any more.

    stream: of the source, examples by global index; None: the prior's noise. scale: sigma(T), by which an example of it is divided."""

    name: str
    group: int
    by_class: bool
    regularization: float
    dataset: data.Dataset
    source: data.Dataset | None
    stream: data.Batches | None
    scale: float
    seed: int
    stretch: data.Stretch = data.Stretch()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        label = batch["label"] if self.by_class else np.zeros(len(batch["value"]), int)
        parts = [slice(i, i + self.group) for i in range(0, len(batch["value"]), self.group)]
        values, sources = zip(*(self.of_group(batch["position"][p].astype(np.int64), batch["value"][p], label[p]) for p in parts))
        return {**batch, "value": np.concatenate(values), "source": np.concatenate(sources)}

    def of_group(self, position, values, label):
        """The values of a group, mirrored, and the source that each is joined with."""
        since = (self.stretch.position,) if self.stretch.position else ()  # another batch size numbers its groups anew
        rng = np.random.default_rng((self.seed, 1, int(position[0]) // self.group, *since))
        if self.dataset.flip:
            coin = rng.integers(2, size=(len(values), 1, 1, 1), dtype=np.uint8)
            values = np.where(coin, values[:, :, ::-1], values)
        x = middles(self.dataset, values)
        if self.source is None:
            y = rng.standard_normal(x.shape, np.float32)
        else:
            u = self.stream.values[self.stream.index(position)]
            y = (u + (rng.random(u.shape, np.float32) if self.source.levels else 0.0) - self.source.shift) / self.source.scale
        joined = y[pairing(self.name, rng, x, y, label if self.by_class else None, self.regularization)]
        return values, (joined if self.source is None else joined / self.scale).astype(np.float32)


def from_config(config: ConfigDict, dataset: data.Dataset, net, hosts: int = 1) -> Coupling | None:
    """The coupling of a run's batches (`config`: all of it); None if noise is independent. Raises ValueError for settings that are no use."""
    chosen, batch, seed = config.coupling, config.training.batch, config.seed
    check(chosen, dataset, batch, hosts)
    if not coupled(chosen):
        return None
    by_class = within_class(chosen, net)
    source = source_of(chosen, dataset)
    stream = source and data.Batches(source, 1, seed + 1)  # another shuffle, should it be the same data
    scale = float(net.sde.sigma(net.sde.T))
    return Coupling(chosen.name, chosen.group or batch, by_class, chosen.regularization, dataset, source, stream, scale, seed)


def check(config: ConfigDict, dataset: data.Dataset, batch: int, hosts: int = 1) -> None:
    """Raise ValueError for an unknown or useless setting of `config.coupling`."""
    if config.name not in NAMES:
        raise ValueError(f"config.coupling.name = '{config.name}': expected one of {', '.join(NAMES)}")
    group, own = config.group or batch, batch // hosts
    if (coupled(config) or config.group) and (group < 1 or own % group):
        raise ValueError(f"config.coupling.group = {config.group}: expected a divisor of the {own} examples of a batch that a host reads")
    if (config.name == "sinkhorn") != (config.regularization > 0):
        raise ValueError(f"config.coupling.regularization = {config.regularization} of '{config.name}': expected above 0 of sinkhorn, 0 of others")
    if config.by_class and (config.name == "independent" or not dataset.num_classes):
        raise ValueError(
            f"config.coupling.by_class of '{config.name}' and {dataset.num_classes} classes: expected ot or sinkhorn, and data with classes"
        )
    if coupled(config) and isinstance(dataset, data.Pairs):
        raise ValueError(f"config.coupling.name = '{config.name}': pairs are coupled already; expected independent, and no coupling.source")
    if coupled(config) and dataset.augment:
        raise ValueError(f"config.data.augment = {dataset.augment} with a coupling: a pair is not augmented; expected 0")
