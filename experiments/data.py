r"""Data sets: what they are, how their values become x, and the stream of training batches.

A value u (a pixel level, or a coordinate) becomes x = (u - shift) / scale, in training and evaluation alike. Data of L discrete levels 0..L-1 are
dequantized first, u = level + uniform[0, 1), and scaled by shift = scale = L/2 to x in [-1, 1). The density of x gives that of u, and so

    bits/dim = -log2 p(level) <= [-log p(x)/D + log(scale)] / log 2        (discrete data; scale = L/2 whatever L is),
    nats     = -log p(u)       =  -log p(x) + D log(scale)                 (continuous data, in their own units).

The numbers of a user's file are converted to values u first, integers to levels and floats to centred or standardised
coordinates (`experiments.units`); the nats above are of the numbers in the file. `Dataset.raw` converts back.

Position in the training stream is ONE number, the global example index p = 0, 1, ...: epoch p // n, place p % n in that epoch's shuffle. Batch k is
examples k B to (k + 1) B - 1, whatever the number of devices, and noise, dequantization and dropout are keyed by p. Where a run changes its batch
size (`Stretch`), its stream goes on with the next example, so that none repeats with the same noise.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float
from ml_collections import ConfigDict, config_flags
from sklearn import datasets

from experiments import archives, cli, folders, records, sources, units
from experiments.augmentation import augment
from experiments.toy import TOYS
from experiments.units import Units
from sde_lib.noise import normal

FACTS = ("shape", "shift", "scale", "levels", "num_classes")  # of a data set, without which samples are no images


@dataclass(frozen=True)
class Dataset:
    """A data set. values: {"train", "test"} -> [n, ...], uint8 levels or float32 coordinates, in memory, mapped, or `records.Records`. labels:
    {"train", "test"} -> classes [n] int32, or a pair of an encoder's embeddings, tokens [n, L, E] and pooled [n, P].

    levels: number of discrete levels, 0 for continuous data. shift, scale: x = (u - shift)/scale. num_classes: 0 if unlabelled.
    flip: whether training images are mirrored, half of them each time. augment: the probability of each of EDM's augmentations in training
    (`experiments.augmentation`), of which a network is told.
    units: how values and the numbers of the user's file belong together (`experiments.units`). classes: the user's own
    labels of the classes, integers or names of folders, where these are not 0, 1, ...
    """

    name: str
    values: dict[str, np.ndarray]
    labels: dict[str, np.ndarray | tuple[np.ndarray, np.ndarray]]
    shift: float
    scale: float
    levels: int = 0
    num_classes: int = 0
    flip: bool = False
    augment: float = 0.0
    units: Units = Units()
    classes: tuple = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.values["train"].shape[1:]

    @property
    def embeddings(self) -> tuple[int, ...]:
        """(L, E, P) of labels that are embeddings, () of others."""
        labels = self.labels["train"]
        return (*labels[0].shape[1:], labels[1].shape[1]) if isinstance(labels, tuple) else ()

    @property
    def is_image(self) -> bool:
        """Whether an example can be looked at: levels [H, W, 1 or 3]."""
        return self.levels > 0 and len(self.shape) == 3 and self.shape[-1] in (1, 3)

    @property
    def images(self) -> "Dataset":
        """What samples are made into; of it no more is sure to be here than the kind."""
        return self

    @property
    def facts(self) -> dict:
        """The kind of data, from which `empty` makes it again."""
        found = {name: getattr(self, name) for name in (*FACTS, "embeddings")}
        return found | {"units": self.units.facts, "classes": list(self.classes)}

    @property
    def dim(self) -> int:
        return int(np.prod(self.shape))

    def to_x(self, keys, values: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """x [B, ...] of raw values [B, ...]; keys [B], one per example, draw the dequantization noise (unused for continuous data)."""
        u = jnp.asarray(values, jnp.float32)
        if self.levels:
            noise = jax.vmap(lambda k: jax.random.uniform(k, u.shape[1:]))(keys)
            if self.levels > 256:  # float32 holds 8 more bits than 65536 levels: in these, no sum is rounded to the next level
                noise = (2 * jnp.floor(128 * noise) + 1) / 256
            u = u + noise
        return (u - self.shift) / self.scale

    def mirror(self, keys, values: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Raw training values [B, ...], mirrored by a coin of each of keys [B] if `flip`."""
        if not self.flip:
            return values
        coin = jax.vmap(jax.random.bernoulli)(keys).reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.where(coin, values[:, :, ::-1], values)

    def middles(self, values: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """x at the middle of the bins of discrete values."""
        return (jnp.asarray(values, jnp.float32) + 0.5 - self.shift) / self.scale

    def from_x(self, x: Float[Array, "b ..."]) -> np.ndarray:
        """Raw values of x: for discrete data the level whose bin x lies in, clipped to the valid ones; uint8 then, else float32."""
        u = np.asarray(x, np.float32) * self.scale + self.shift
        return np.clip(np.floor(u), 0, self.levels - 1).astype(units.level_type(self.levels)) if self.levels else u

    def raw(self, values) -> np.ndarray:
        """The numbers of the user's file that values [..., *shape] stand for."""
        return self.units.raw(values)

    def plane(self, values) -> np.ndarray:
        """Values as pictures with equal axes have them: the numbers of the user's file, or standardised coordinates where each has its own scale."""
        return self.raw(values) if np.ndim(self.units.step) == 0 else np.asarray(values)

    def written(self, values) -> np.ndarray:
        """Values as files of samples have them: images of up to 256 levels as 0 to 255, all others as in the user's file."""
        spread = self.is_image and self.levels <= 256
        return np.round(values * (255.0 / (self.levels - 1))).astype(np.uint8) if spread else self.raw(values)

    def read(self, array: np.ndarray) -> np.ndarray:
        """Values of `written` arrays; of images also of those in the numbers of the user's file, if all of them are levels there. Raises ValueError
        for a number that is none."""
        if not (self.is_image and self.levels <= 256):
            return units.convert(array, self.units, self.levels)
        numbers = np.arange(self.levels)
        found = np.unique(array)
        as_images, as_user = (np.isin(found, levels).all() for levels in (self.written(numbers), self.raw(numbers)))
        if as_user and not as_images:
            return units.convert(array, self.units, self.levels)
        if found[0] < 0 or found[-1] > 255:
            raise ValueError(f"images with values from {found[0]} to {found[-1]}: expected 0 to 255, or {units.described(self.units, self.levels)}")
        return np.round(array * ((self.levels - 1) / 255.0)).astype(np.uint8)

    def labels_written(self, labels: np.ndarray) -> np.ndarray:
        """Classes [n] as the integers that the user's file has for them."""
        own = np.asarray(self.classes)
        return own[labels] if own.size and np.issubdtype(own.dtype, np.integer) else labels

    def labels_read(self, labels: np.ndarray) -> np.ndarray:
        """Classes [n] of `labels_written`. Raises ValueError for another label."""
        own = np.asarray(self.classes)
        if not own.size or not np.issubdtype(own.dtype, np.integer):
            return labels
        if (other := np.setdiff1d(labels, own)).size:
            raise ValueError(f"the label {other[0]}: expected {', '.join(map(str, self.classes[:8]))}{', ...' * (len(own) > 8)}")
        return np.searchsorted(own, labels)

    def class_of(self, label: int) -> int:
        """The class that the user's label stands for. Raises ValueError if there is none."""
        own = self.classes if self.classes and isinstance(self.classes[0], int) else range(self.num_classes)
        if label not in own:
            expected = f"0 to {len(own) - 1}" if isinstance(own, range) else ", ".join(map(str, own))
            raise ValueError(f"--label={label}: expected {expected}")
        return own.index(label)

    @property
    def affine(self) -> tuple:
        """a and b of u = a + b x, of the numbers of the user's file."""
        return self.units.origin + self.units.step * self.shift, self.units.step * self.scale

    @property
    def log_volume(self) -> float:
        """log |du/dx|: u the numbers of the user's file for continuous data, and in levels for discrete data."""
        own = 0.0 if self.levels else self.units.log_volume(self.dim)
        return self.dim * float(np.log(self.scale)) + own

    @property
    def space(self) -> str:
        """What x is, in words."""
        x = f"x = (u - {self.shift:g}) / {self.scale:g}"
        if self.levels:
            own = "" if self.units.trivial else f", of {units.described(self.units, self.levels)} in the file"
            return f"{x}, u in levels 0 to {self.levels - 1}{own}"
        origin, step = self.units.origin, self.units.step
        if np.ndim(step):
            ends = f"{np.min(step):.4g} to {np.max(step):.4g}" if self.dim > 1 else f"{np.min(step):.4g}"
            return f"x = (u - mean) / std in each of {self.dim} coordinates, std {ends}"
        return f"x = (u - {self.shift + origin:.9g}) / {self.scale * step:g}"

    @property
    def reading(self) -> str:
        """What was made of a user's file, in a line, with the options that change it; empty for other data."""
        if self.name not in SOURCES or (self.units.trivial and self.levels in (0, 256) and not self.classes):
            return ""
        option = "config.data.levels" if self.levels else "config.data.standardize"
        what = units.described(self.units, self.levels) if self.levels else self.space
        line = f"{'integers of ' if self.levels else ''}{what} ({option})"
        if self.classes:
            shown = ", ".join(map(str, self.classes[:4])) + (", ..." if len(self.classes) > 4 else "")
            line += f"; the labels {shown} are classes 0 to {len(self.classes) - 1}"
        return line

    def score(self, log_prob: Float[Array, " b"]) -> np.ndarray:
        """log p(x) in nats, [B], as bits/dim (discrete data) or as -log p(u) in nats (continuous data)."""
        nats = -np.asarray(log_prob, np.float64) + self.log_volume
        return nats / (self.dim * np.log(2)) if self.levels else nats

    @property
    def unit(self) -> str:
        return "bits/dim" if self.levels else "nats"


@dataclass(frozen=True)
class Latents(Dataset):
    """Latents of images, as `experiments.autoencode` writes them. values: [n, h, w, 2 c], mean and standard deviation of each image's; x is a draw of
    them, another one each time that an example comes, divided by `scale`. Their density is that of latents, in nats.

    about: what latents.json says, of the autoencoder and the images. decoder: x [n, h, w, c] * scale -> images in (-1, 1), where it has been loaded
    (`runs.load_run`); samples are then images.
    """

    about: dict = field(default_factory=dict)
    decoder: Callable | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        *shape, channels = self.values["train"].shape[1:]
        return *shape, channels // 2

    @property
    def images(self) -> Dataset:
        return empty(self.about["images"]["name"], self.about["images"])

    @property
    def facts(self) -> dict:
        return super().facts | {"about": self.about}

    def to_x(self, keys, values: Float[Array, "b h w 2*c"]) -> Float[Array, "b h w c"]:
        mean, std = jnp.split(jnp.asarray(values, jnp.float32), 2, -1)
        return (mean + std * normal(keys, mean.shape, mean.dtype) - self.shift) / self.scale

    def from_x(self, x: Float[Array, "*b h w c"]) -> np.ndarray:
        """The images of x, as their raw values; without a decoder the latents."""
        z = super().from_x(x)
        if self.decoder is None:
            return z
        values = self.images.from_x(self.decoder(z.reshape(-1, *self.shape)))
        return values.reshape(*z.shape[:-3], *values.shape[1:])


@dataclass(frozen=True)
class Pairs(Dataset):
    """Both ends (x_0, x_T) of a model's probability flow, as `experiments.reflow` writes them. values: {"train", "test"} -> x_0 [n, ...], in units
    of x; sources: likewise x_T/sigma(T), which a batch has as its "source". shift, scale: of what the model was trained on.

    about: what pairs.json says, of the model and how it was integrated. of: the data of the model, or no more than their kind, which samples become.
    """

    sources: dict[str, np.ndarray] = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    of: Dataset | None = None

    @property
    def images(self) -> Dataset:
        return self.of.images

    @property
    def facts(self) -> dict:
        return super().facts | {"of": {"name": self.of.name, **self.of.facts}}

    def to_x(self, keys, values: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        return jnp.asarray(values, jnp.float32)

    def from_x(self, x: Float[Array, "b ..."]) -> np.ndarray:
        return self.of.from_x(x)


def reference(dataset: Dataset) -> Dataset:
    """What samples are judged against: the data set, of latents the images that they were made from, of pairs what their model was trained on. Raises
    what `load` raises."""
    if isinstance(dataset, Pairs):
        return reference(as_noted(dataset.about["of"]))
    return as_noted(dataset.about["images"]) if isinstance(dataset, Latents) else dataset


def as_noted(about: dict) -> Dataset:
    """The data set of about["config"], read as the facts beside it say. Raises what `load` raises."""
    return load(ConfigDict(with_old_reading(about["config"], 0, "units" in about)), about)


def with_old_reading(config: dict, num_classes: int, new: bool = False) -> dict:
    """`config.data` of a run; before the options of `OLD` there was one way of reading files, which they name. num_classes: of its model."""
    if new or config["name"] not in SOURCES:
        return config
    return OLD | ({"classes": num_classes} if num_classes else {}) | config


def shown(dataset: Dataset) -> np.ndarray:
    """Test examples of `reference`, to be drawn beside samples; none [0, ...] where they cannot be loaded."""
    try:
        return reference(dataset).values["test"]
    except (OSError, ValueError):
        return dataset.images.values["test"]


def empty(name: str, facts: dict) -> Dataset:
    """The data set of these `Dataset.facts` without its examples. Raises KeyError, TypeError or ValueError if they are none."""
    shape, shift, scale, levels, num_classes = (facts[fact] for fact in FACTS)
    own = {"units": units.of_facts(facts.get("units"), shape), "classes": tuple(facts.get("classes", ()))}
    shape = (*shape[:-1], 2 * shape[-1]) if "about" in facts else shape
    none = np.zeros((0, *shape), units.level_type(levels) if levels else np.float32)
    embeddings = facts.get("embeddings")
    labels = (np.zeros((0, *embeddings[:2])), np.zeros((0, embeddings[2]))) if embeddings else np.zeros(0, np.int32)
    kind, more = (Latents, {"about": facts["about"]}) if "about" in facts else (Dataset, {})
    if "of" in facts:
        kind, more = Pairs, {"of": empty(facts["of"]["name"], facts["of"])}
    splits = {"train": none, "test": none}, {"train": labels, "test": labels}
    return kind(name, *splits, shift, scale, levels, num_classes, **own, **more)


def load(config: ConfigDict, facts: dict | None = None) -> Dataset:
    """The data set that `config.name` names, with `config.variant` and `config.path` where it has them.

    facts: `Dataset.facts` of a run; a user's files are then read as they were for it, whatever they have now.
    Raises ValueError for an unknown name or variant, FileNotFoundError if files are missing and cannot be downloaded.
    """
    if config.name in TOYS:
        dataset = _toy(config.name, config.get("variant", ""))
    elif config.name in SOURCES:
        options = tuple((name, config.get(name) or default) for name, default in READING.items())
        dataset = _images(config.name, config.get("path", ""), options, json.dumps(facts) if facts else "")
    elif config.name in LOADERS:
        dataset = LOADERS[config.name](config.get("path", ""), config.get("size", 0))
    else:
        raise ValueError(f"unknown data set '{config.name}': expected one of {', '.join([*LOADERS, *TOYS])}")
    if config.get("flip", False) and isinstance(dataset, Latents):
        raise ValueError("config.data.flip mirrors images, not latents: pass --flip to experiments.autoencode instead")
    if isinstance(dataset, Pairs) and (config.get("flip", False) or config.get("augment", 0.0)):
        raise ValueError("config.data.flip and config.data.augment change x_0, not the x_T that it is paired with: expected neither of pairs")
    if config.get("flip", False) and len(dataset.shape) != 3:
        raise ValueError(f"config.data.flip mirrors images: expected examples [H, W, C], {config.name} has {dataset.shape}")
    chance = config.get("augment", 0.0)
    if not 0 <= chance <= 1 or (chance and (len(dataset.shape) != 3 or isinstance(dataset, Latents))):
        raise ValueError(f"config.data.augment = {chance}: expected a probability, 0 to 1, and 0 but for images [H, W, C]")
    return replace(dataset, flip=config.get("flip", False), augment=chance)


@lru_cache(maxsize=4)
def _toy(name: str, variant: str, train: int = 100_000, test: int = 10_000) -> Dataset:
    draw, variants = TOYS[name]
    variant = variant or variants[0]
    if variant not in variants:
        raise ValueError(f"data set '{name}' has no variant '{variant}': expected one of {', '.join(variants)}")
    values = {s: draw(np.random.default_rng(i), n, variant).astype(np.float32) for i, (s, n) in enumerate((("train", train), ("test", test)))}
    labels = {split: np.zeros(len(v), np.int32) for split, v in values.items()}
    return Dataset(f"{name}-{variant}", values, labels, float(values["train"].mean()), float(values["train"].std()))


@lru_cache(maxsize=1)
def _digits(path: str, size: int) -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8x8x1, 17 levels; 1437 to train and 360 to test, by a fixed permutation."""
    data = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    parts = {"train": order[:1437], "test": order[1437:]}
    values = {split: data.images[i].astype(np.uint8)[..., None] for split, i in parts.items()}
    labels = {split: data.target[i].astype(np.int32) for split, i in parts.items()}
    return Dataset("digits", values, labels, shift=8.5, scale=8.5, levels=17, num_classes=10)


@lru_cache(maxsize=2)
def _images(name: str, path: str, options: tuple, facts: str = "") -> Dataset:
    """Images, or of an npz any arrays, of files: see `experiments.sources`. options: `READING`, as pairs. facts: of `load`, as JSON."""
    options, noted = dict(options), json.loads(facts) if facts else None
    raw, labels, names = SOURCES[name](path, options)
    train, where = raw["train"], f"config.data.path = '{path}'"
    discrete = train.dtype.kind in "biu"
    if noted:
        own, levels = units.of_facts(noted.get("units"), noted["shape"]), noted["levels"]
        shift, scale = noted["shift"], noted["scale"]
        if tuple(noted["shape"]) != train.shape[1:] or bool(levels) != discrete:
            raise ValueError(
                f"{where} has examples {train.shape[1:]} of {train.dtype}: expected {tuple(noted['shape'])} of "
                f"{'integers' if levels else 'floats'}, on which the run was trained"
            )
    elif discrete:
        own, levels = units.find_levels([*raw.values()], options["levels"], where)
        shift = scale = levels / 2
    else:
        if options["levels"] > 0:
            raise ValueError(f"config.data.levels = {options['levels']} of {train.dtype}: expected integers, or 0; a density of floats has no levels")
        vectors = len(train.shape) == 2
        own, scale = units.find_units(train, options["standardize"], vectors, where)
        shift, levels = 0.0, 0
    values = {split: units.values_of(part, own, levels) for split, part in raw.items()}
    if isinstance(labels["train"], tuple):
        return Dataset(name, values, labels, shift, scale, levels, units=own)
    known = names
    if noted:
        known = tuple(noted.get("classes") or (names if len(names) == noted["num_classes"] else range(noted["num_classes"])))
    elif options["classes"]:
        known = tuple(range(options["classes"]))
    labels = {split: reclassed(part, names, known, where) for split, part in labels.items()} if known else labels
    mapped = known if known != tuple(range(len(known))) else ()
    return Dataset(name, values, labels, shift, scale, levels, len(known), units=own, classes=mapped)


def reclassed(labels: np.ndarray, names: tuple, known: tuple, where: str) -> np.ndarray:
    """Classes [n] of `names` as classes of `known`. Raises ValueError for one that is not known, and where there are no labels."""
    if not names:
        raise ValueError(f"{where} has no labels: expected those of {len(known)} classes")
    unnamed = isinstance(names[0], str) and not isinstance(known[0], str)  # folders, in their order
    if names == known or (unnamed and len(names) == len(known)):
        return labels.astype(np.int32)
    if unnamed:
        raise ValueError(f"{where} has {len(names)} folders of classes: expected {len(known)}")
    place = {name: i for i, name in enumerate(known)}
    if unknown := [names[i] for i in np.unique(labels) if names[i] not in place]:
        raise ValueError(f"{where} has the class {unknown[0]}, which is none of {', '.join(map(str, known[:8]))}{', ...' * (len(known) > 8)}")
    return np.array([place.get(name, 0) for name in names], np.int32)[labels]


@lru_cache(maxsize=2)
def _latents(path: str, size: int) -> Latents:
    """What `experiments.autoencode` has written to the folder `path`."""
    values, labels, about = sources.latents(path)
    images = about["images"]
    own = {"classes": tuple(images.get("classes", ())), "about": about}
    return Latents("latents", values, labels, 0.0, float(about["scale"]), 0, int(images["num_classes"]), **own)


@lru_cache(maxsize=2)
def _pairs(path: str, size: int) -> Pairs:
    """What `experiments.reflow` has written to the folder `path`."""
    values, starts, labels, about = sources.pairs(path)
    of = empty(about["of"]["name"], about["of"])
    # an unconditional model's pairs are of no class, although its data had some; older files do not say it, but all their labels are 0 then
    labelled = about.get("labelled", about.get("label", 0) >= 0 or bool(labels["train"].any()))
    num_classes, classes = (of.num_classes, of.classes) if labelled else (0, ())
    own = {"units": Units() if of.levels else of.units, "classes": classes}
    return Pairs("pairs", values, labels, of.shift, of.scale, 0, num_classes, sources=starts, about=about, of=of, **own)


# name -> function of (path, options), which gives a `sources.Source`
SOURCES = {
    "fashion_mnist": lambda path, options: archives.fashion_mnist(path),
    "cifar10": lambda path, options: archives.cifar(10, path),
    "cifar100": lambda path, options: archives.cifar(100, path),
    "folder": folders.folder,
    "npz": sources.npz,
    "array_record": records.source,
}
LOADERS = {"digits": _digits, "latents": _latents, "pairs": _pairs} | dict.fromkeys(SOURCES)
# the options under config.data of how files are read, with their defaults; and those that name what was done before there were any
READING = {"size": 0, "mode": "", "fit": "crop", "levels": 0, "standardize": "", "classes": 0}
OLD = {"mode": "RGB", "levels": units.WHOLE_TYPE, "standardize": "one"}


@dataclass(frozen=True)
class Stretch:
    """Where training in one batch size begins: batch number `step` starts with example `position` of the stream."""

    step: int = 0
    position: int = 0


class Batches:
    """Training batches by number, as a random-access source for grain: {"value", "label", "position"}, position being the global
    example index modulo 2^32 (after which noise repeats, with other data); of `Pairs` also "source". Of `hosts` hosts, `host` has its share of
    each batch alone. stretch: where batches of this size begin."""

    def __init__(self, dataset: Dataset, batch: int, seed: int, host: int = 0, hosts: int = 1, stretch: Stretch = Stretch()):
        self.values, self.labels = dataset.values["train"], dataset.labels["train"]
        self.joined = {"source": dataset.sources["train"]} if isinstance(dataset, Pairs) else {}
        self.batch, self.seed, self.host, self.own, self.stretch = batch, seed, host, batch // hosts, stretch
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.values))

    def __len__(self) -> int:
        return sys.maxsize // self.batch

    def index(self, position: np.ndarray) -> np.ndarray:
        """Which examples of the data set are at these global example indices."""
        epoch, place = np.divmod(position, len(self.values))
        index = np.empty_like(place)
        for e in np.unique(epoch):
            index[epoch == e] = self.order(int(e))[place[epoch == e]]
        return index

    def positions(self, k: int) -> np.ndarray:
        """The places in the stream of all examples of batch k, [B], of every host."""
        return np.arange(self.batch) + self.stretch.position + (k - self.stretch.step) * self.batch

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        position = self.positions(k)[self.host * self.own : (self.host + 1) * self.own]
        index = self.index(position)
        label, joined = jax.tree.map(lambda a: a[index], (self.labels, self.joined))
        return {"value": self.values[index], "label": label, "position": (position % 2**32).astype(np.uint32), **joined}


def batches(
    dataset: Dataset, batch: int, seed: int, start: int = 0, couple: Callable | None = None, stretch: Stretch = Stretch()
) -> Iterator[dict[str, np.ndarray]]:
    """Batches `start`, `start` + 1, ... of the training stream, by grain; of several hosts each reads the examples of its own devices alone.

    couple: batch -> batch with its source (`experiments.couplings`), ahead of the training."""
    source = grain.MapDataset.source(Batches(dataset, batch, seed, jax.process_index(), jax.process_count(), stretch))[start:]
    source = source if couple is None else source.map(couple)
    # a batch of data in memory is a gather of some 30 microseconds: a prefetching thread would cost more than it hides
    threads = 0 if type(dataset.values["train"]) is np.ndarray and couple is None else 8
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))


def fingerprint(*parts: np.ndarray) -> str:
    """The SHA-256 of arrays, by which what is computed of them is kept; in blocks, as they need not fit in memory."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype} {part.shape}".encode())
        for start in range(0, len(part), 10_000):
            digest.update(np.ascontiguousarray(part[start : start + 10_000]))
    return digest.hexdigest()


def define_flags() -> None:
    """The flags by which commands choose data without a run."""
    config_flags.DEFINE_config_file("config", None, "Experiment, whose data it is, e.g. configs/fashion.py")
    flags.DEFINE_string("name", "folder", f"Without --config, the data set: {', '.join([*LOADERS, *TOYS])}.")
    flags.DEFINE_string("path", "", "Without --config, its file or folder.")
    flags.DEFINE_integer("size", 0, "Without --config, the side of the images of a folder.")


def from_flags() -> Dataset:
    """The data that the flags choose. Raises what `load` raises."""
    f = flags.FLAGS
    return load(f.config.data if f.config else ConfigDict({"name": f.name, "path": f.path, "size": f.size}))


def check() -> None:
    """Print what a data set is, and draw a grid of what the network sees of it."""
    from experiments import plots

    f = flags.FLAGS
    dataset = from_flags()
    for split, values in dataset.values.items():
        some = values[:10_000]
        own = dataset.raw(some)
        print(f"{dataset.name} {split}: {len(values)} examples of shape {dataset.shape}, {own.dtype} from {own.min():.4g} to {own.max():.4g}")
        if dataset.num_classes:
            counts = np.bincount(dataset.labels[split], minlength=dataset.num_classes)
            print(f"    {dataset.num_classes} classes of {counts.min()} to {counts.max()} examples")
        if dataset.embeddings:
            print("    with {} tokens of {} numbers, and {} pooled".format(*dataset.embeddings))
    if dataset.reading:
        print(dataset.reading)
    first = next(batches(dataset, 64, 0))
    keys = jax.random.split(jax.random.key(0), 64)
    x = dataset.to_x(keys, dataset.mirror(keys, first["value"]))
    if dataset.augment:
        x, _ = augment(keys, x, dataset.augment)
    print(f"{dataset.space}: from {float(x.min()):.3f} to {float(x.max()):.3f}, mean {float(x.mean()):.3f}, ", end="")
    print(f"standard deviation {float(x.std()):.3f} (objective.sigma_data)")
    if dataset.is_image:
        print(f"wrote {plots.grid(plots.to_uint8(dataset.from_x(x), dataset.levels), f.out)}")


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_string("out", "runs/data.png", "Where the grid goes.")
    cli.run(check)
