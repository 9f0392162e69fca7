"""A trained run, loaded back: its config, data, network and weights."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import adapters, cli, couplings, network, parallel, sources, state
from experiments import weights as files
from experiments.autoencoder import Autoencoder
from experiments.checkpoints import Checkpoints
from experiments.classifier import Classifier
from experiments.data import Dataset, Latents, Pairs
from experiments.network import Network
from experiments.untrusted import read_json
from sde_lib import Denoiser, FlowMap
from sde_lib.brief import count

# exports in the workdir of a run that was trained with them: of the weights that an adapter is for, and of the model that was distilled
BASE, TEACHER = "base", "teacher"


@dataclass(frozen=True)
class Run:
    """weights: "ema" or "raw", which of the two `params` are. step: of the checkpoint. adapter: that a run trained (`config.lora`), and lora: the
    flags --lora with the SHA-256 of their files, all merged into params."""

    workdir: Path
    config: ConfigDict
    dataset: Dataset
    network: Network | Autoencoder | Classifier
    params: dict
    weights: str
    step: int
    adapter: dict | None = None
    lora: tuple[str, ...] = ()

    def __repr__(self) -> str:
        module = type(getattr(self.network, "module", self.network)).__name__
        on = f" on {self.network.sde!r:.100}" if hasattr(self.network, "sde") else ""
        data_of = f"data {self.dataset.name} {self.dataset.shape}"
        weights = f"{self.weights} weights of step {self.step}, {count(self.params):,} parameters"
        return f"Run({str(self.workdir)!r}, {module}{on}, {weights}, {data_of})"

    @property
    def source(self) -> Dataset | None:
        """The data set that its flow begins at, in the place of the prior (`config.coupling`)."""
        return couplings.source_of(self.config.coupling, self.dataset)

    def denoiser(self, label=None) -> Denoiser:
        """Of this run, conditioned on labels (see `labels`) if given; guided: see `experiments.guidance`."""
        return self.network.denoiser(self.params, label)

    def flow_map(self, label=None, omega: float = 1.0) -> FlowMap:
        """Of this run, likewise; omega: the guidance, of a model that is told. Raises ValueError for a network of one time, and an omega that it was
        not trained for."""
        low, high = self.config.objective.consistency.omega
        if high and not low <= omega <= high:
            raise ValueError(f"--guidance={omega}: this model is told its guidance; expected {low} to {high}, of which it was trained")
        return self.network.flow_map(self.params, label, omega)

    @property
    def conditional(self) -> bool:
        return self.network.none is not None

    def labels(self, n: int, label: int = -1):
        """What n samples are conditioned on, [n] or a pair of embeddings [n, L, E] and [n, P]; None of an unconditional model.

        label: a class, by the user's own label of it, or the test example whose embeddings are taken; -1 takes all in turn.
        Raises ValueError if there is no such.
        """
        if label < -1:
            raise ValueError(f"--label={label}: expected a class, or -1 for all in turn")
        if not self.conditional:
            if label >= 0:
                raise ValueError(f"--label={label}: this model is unconditional")
            return None
        classes = self.network.module.num_classes
        label = self.dataset.class_of(label) if self.dataset.classes and label >= 0 else label
        choices = np.arange(classes) if classes else self.dataset.labels["test"]
        count = len(jax.tree.leaves(choices)[0])
        if not count:
            raise ValueError(f"this model is conditioned on embeddings: samples need those of its data, {self.config.data.path}, which is not here")
        if label >= count:
            raise ValueError(f"--label={label}: expected 0 to {count - 1}")
        index = np.full(n, label) if label >= 0 else np.arange(n) % count
        return jax.tree.map(lambda a: a[index], choices)

    def fingerprint(self) -> str:
        """What identifies the weights."""
        return files.digest(self.params)

    def description(self) -> dict:
        """What every figure of this run is reported with."""
        return {"workdir": self.workdir.name, "data": self.dataset.name, "step": self.step, "weights": self.weights} | (
            {"lora": list(self.lora)} if self.lora else {}
        )


def define_flags() -> None:
    """The flags by which commands choose a run."""
    flags.DEFINE_string("workdir", None, "A run made by experiments.train.")
    flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged or raw parameters.")
    flags.DEFINE_integer("checkpoint", None, "Step of the checkpoint; the newest by default.")
    flags.DEFINE_multi_string("lora", [], "FILE[:WEIGHT], an adapter that experiments.export wrote, to be added to the weights; any number of them.")
    flags.DEFINE_integer("batch", 256, "Examples at once, over all devices. No result depends on it.")
    flags.DEFINE_integer("seed", 0, "Seed of all randomness.", 0, 2**32 - 1)  # of a larger one JAX takes 32 bits


def from_flags(sources: bool = False) -> Run:
    """The run that the flags choose, with its --lora; sources: whether it may begin at another data set than the prior's noise.

    Raises what `load_run` and `adapters.merged` raise, and ValueError for a run that does not generate.
    """
    f = flags.FLAGS
    if f.workdir is None:
        raise ValueError("--workdir is missing: expected a run made by `python -m experiments.train`")
    parallel.check_batch(f.batch, "--batch")
    run = load_run(f.workdir, f.checkpoint, f.weights)
    check_generates(run)
    if not sources:
        check_noise(run)
    return adapted(run, f.lora)


def check_generates(run: Run) -> None:
    """Raises ValueError for an autoencoder and a classifier."""
    if isinstance(run.network, Autoencoder):
        raise ValueError(
            f"--workdir={run.workdir} is an autoencoder: encode data with experiments.autoencode, and pass a run that is trained on them"
        )
    if isinstance(run.network, Classifier):
        raise ValueError(
            f"--workdir={run.workdir} is a classifier: name a generative model, which experiments.sample --classifier={run.workdir} guides"
        )


def check_noise(run: Run) -> None:
    """Raises ValueError for a run that begins at another data set than the prior's noise."""
    if source := run.config.coupling.source.name:
        raise ValueError(
            f"--workdir={run.workdir} goes from {source} to {run.dataset.name}: its latents have no known density, and are no noise; expected a run "
            "of the prior, or experiments.sample or evaluate"
        )


def adapted(run: Run, lora: list[str]) -> Run:
    """A run with the adapters of the flags --lora; a consistency function if one of them makes it one. Raises what `adapters.merged` and
    `adapters.check` raise."""
    params = functools.reduce(adapters.merged, lora, run.params)
    for flag in lora:
        adapters.check(flag, run.network)
    if any(adapters.jumps(flag) for flag in lora):
        run = replace(run, network=replace(run.network, final=True))
    return replace(run, params=params, lora=tuple(f"{flag} {adapters.digest(flag)}" for flag in lora))


def load_run(workdir: str | Path, step: int | None = None, weights: str = "ema", dataset: Dataset | None = None) -> Run:
    """Load a run, or an export of one. dataset: of its kind, in the place of its own.

    Raises FileNotFoundError if there is no run or checkpoint, ValueError if it is corrupt or does not fit.
    """
    config = cli.load_config(workdir)
    exported = any(file.exists() for file in (Path(workdir) / files.SAID, files.file(workdir, weights)))
    if dataset is None:
        dataset = files.dataset(workdir, config.data)
    if isinstance(dataset, Latents) and not exported:
        same_latents(workdir, dataset)
    dataset = with_decoder(dataset)
    net = network.from_config(config, dataset.num_classes, dataset.embeddings)
    folder = Path(workdir) / "checkpoints"
    if exported:
        params, found = files.read(workdir, weights, jax.eval_shape(lambda: net.init(jax.random.key(0), dataset.shape)))
        if step not in (None, found):
            raise FileNotFoundError(f"no checkpoint of step {step} in {workdir}: it is an export of step {found}")
        return Run(Path(workdir), config, dataset, net, parallel.replicate(params), weights, found)
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint in {folder}: train first")
    like = jax.eval_shape(lambda: state.init(config, net, dataset.shape))
    with Checkpoints(folder, keep=None) as checkpoints:
        restored = checkpoints.restore(like, step)
    trained = restored.ema if weights == "ema" else restored.params
    adapter, base = (trained, load_run(Path(workdir) / BASE).params) if config.lora.rank else (None, None)
    params = parallel.replicate(state.whole(config, trained, base))
    return Run(Path(workdir), config, dataset, net, params, weights, int(restored.step), adapter)


def same_latents(workdir: str | Path, latents: Latents) -> None:
    """Raises ValueError if a run is of other latents, as of another autoencoder, than those that training noted in its folder."""
    file, ours = Path(workdir) / sources.LATENTS, {name: latents.about[name] for name in LATENTS_ARE}
    if file.exists() and (theirs := read_json(file)) != ours:
        raise ValueError(
            f"{workdir} was trained on other latents ({theirs}) than those of config.data.path now ({ours}): put them back, or train again"
        )


def with_decoder(dataset: Dataset) -> Dataset:
    """Latents, or pairs of them, with their decoder; other data as they are."""
    if isinstance(dataset, Pairs):
        return replace(dataset, of=with_decoder(dataset.of))
    return replace(dataset, decoder=decoder(dataset)) if isinstance(dataset, Latents) else dataset


LATENTS_ARE = ("sha256", "scale")  # what tells latents from others
DECODED = 16  # latents at once on a device


def decoder(latents: Latents) -> Callable:
    """The function from latents [n, h, w, c] to images [n, H, W, C] in (-1, 1) of the autoencoder that they are of.

    Raises FileNotFoundError if it is not there any more, ValueError if it is another.
    """
    about = latents.about
    place = f"the latents' autoencoder, {about['autoencoder']} ({about['weights']} weights of step {about['step']})"
    try:
        run = load_run(about["autoencoder"], about["step"], about["weights"], latents.images)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place}, is missing ({error}): put it back, or its new place into latents.json or export.json") from None
    if files.digest(run.params) != about["sha256"]:
        raise ValueError(f"{place}, is another than they were encoded with (its SHA-256 differs): put that back, or encode and train again")
    decode = jax.jit(run.network.decode)
    one_batch = lambda keys, z: decode(run.params, z)
    return lambda z: gather(in_batches(one_batch, len(z), DECODED * jax.device_count(), jax.random.key(0), z))


def in_batches(fn: Callable, n: int, batch: int, key, *arrays, start: int = 0) -> Iterator:
    """fn(keys, *rows) over examples start..n-1 in batches of one shape; yields its results as NumPy arrays without the padding.

    keys: [batch], of each example's global index, so that batches do not matter. arrays: [n, ...], or pytrees of them; the last batch is filled up by
    repetition.
    """
    if n < 1:
        raise ValueError(f"{n} examples: expected at least 1")
    devices = jax.device_count()
    batch = -(-min(batch, n) // devices) * devices
    for begin in range(start, n, batch):
        index = np.minimum(np.arange(begin, begin + batch), n - 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(index))
        result = fn(*parallel.shard((keys, *jax.tree.map(lambda a, index=index: a[index], arrays))))
        yield jax.tree.map(lambda a, left=n - begin: np.asarray(a)[:left], result)


def gather(results: Iterator):
    """The results of `in_batches` joined along the first axis."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)
