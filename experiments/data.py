r"""Data sets: what they are, how their values become x, and the stream of training batches.

A value u (a pixel level, or a coordinate) becomes x = (u - shift) / scale, in training and evaluation alike. Data of L discrete levels 0..L-1 are
dequantized first, u = level + uniform[0, 1), and scaled by shift = scale = L/2 to x in [-1, 1). The density of x gives that of u, and so

    bits/dim = -log2 p(level) <= [-log p(x)/D + log(scale)] / log 2        (discrete data; scale = L/2 whatever L is),
    nats     = -log p(u)       =  -log p(x) + D log(scale)                 (continuous data, in their own units).

Position in the training stream is ONE number, the global example index p = 0, 1, ...: epoch p // n, place p % n in that epoch's shuffle. Batch k is
examples k B to (k + 1) B - 1, whatever the number of devices, and noise, dequantization and dropout are keyed by p.
"""

import gzip
import hashlib
import struct
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from sklearn import datasets

from experiments.toy import TOYS


@dataclass(frozen=True)
class Dataset:
    """A data set in memory. values: {"train", "test"} -> [n, ...], uint8 levels or float32 coordinates; labels: likewise [n] int32.

    levels: number of discrete levels, 0 for continuous data. shift, scale: x = (u - shift)/scale. num_classes: 0 if unlabelled.
    """

    name: str
    values: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    shift: float
    scale: float
    levels: int = 0
    num_classes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.values["train"].shape[1:]

    @property
    def dim(self) -> int:
        return int(np.prod(self.shape))

    def to_x(self, keys, values: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """x [B, ...] of raw values [B, ...]; keys [B], one per example, draw the dequantization noise (unused for continuous data)."""
        u = jnp.asarray(values, jnp.float32)
        if self.levels:
            u = u + jax.vmap(lambda k: jax.random.uniform(k, u.shape[1:]))(keys)
        return (u - self.shift) / self.scale

    def middles(self, values: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """x at the middle of the bins of discrete values."""
        return (jnp.asarray(values, jnp.float32) + 0.5 - self.shift) / self.scale

    def from_x(self, x: Float[Array, "b ..."]) -> np.ndarray:
        """Raw values of x: for discrete data the level whose bin x lies in, clipped to the valid ones; uint8 then, else float32."""
        u = np.asarray(x, np.float32) * self.scale + self.shift
        return np.clip(np.floor(u), 0, self.levels - 1).astype(np.uint8) if self.levels else u

    def score(self, log_prob: Float[Array, " b"]) -> np.ndarray:
        """log p(x) in nats, [B], as bits/dim (discrete data) or as -log p(u) in nats (continuous data)."""
        nats = -np.asarray(log_prob, np.float64) + self.dim * np.log(self.scale)
        return nats / (self.dim * np.log(2)) if self.levels else nats

    @property
    def unit(self) -> str:
        return "bits/dim" if self.levels else "nats"


def load(config: ConfigDict) -> Dataset:
    """The data set that `config.name` names, with `config.variant` and `config.path` where it has them.

    Raises ValueError for an unknown name or variant, FileNotFoundError if files are missing and cannot be downloaded.
    """
    if config.name in TOYS:
        return _toy(config.name, config.get("variant", ""))
    if config.name not in LOADERS:
        raise ValueError(f"unknown data set '{config.name}': expected one of {', '.join([*LOADERS, *TOYS])}")
    return LOADERS[config.name](config.get("path", ""))


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
def _digits(path: str) -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8x8x1, 17 levels; 1437 to train and 360 to test, by a fixed permutation."""
    data = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    parts = {"train": order[:1437], "test": order[1437:]}
    values = {split: data.images[i].astype(np.uint8)[..., None] for split, i in parts.items()}
    labels = {split: data.target[i].astype(np.int32) for split, i in parts.items()}
    return Dataset("digits", values, labels, shift=8.5, scale=8.5, levels=17, num_classes=10)


FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # the Debian package dataset-fashion-mnist
FASHION_CACHE = Path.home() / ".cache" / "fashion-mnist"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_SHA256 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def _idx(name: str, folder: Path) -> np.ndarray:
    """One verified IDX file, from `folder`, or downloaded to the cache."""
    file = next((folder / n for n in (name, name + ".gz") if (folder / n).exists()), None)
    downloaded = file is None
    if downloaded:
        file = FASHION_CACHE / (name + ".gz")
        try:
            with urllib.request.urlopen(FASHION_URL + file.name, timeout=60) as response:
                raw = response.read(64 << 20)
        except (urllib.error.URLError, OSError) as error:
            raise FileNotFoundError(
                f"Fashion-MNIST: no {name}[.gz] in {folder}, and the download failed ({error}): "
                "pass --config.data.path=FOLDER with the IDX files, or install the Debian package dataset-fashion-mnist"
            ) from None
    else:
        raw = file.read_bytes()
    try:
        content = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read ({error}): delete it and try again") from None
    if hashlib.sha256(content).hexdigest() != FASHION_SHA256[name]:
        raise ValueError(f"{file} is not the {name} of Fashion-MNIST (its SHA-256 differs): delete it and try again")
    if downloaded:  # kept only now that it is known to be right
        FASHION_CACHE.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


@lru_cache(maxsize=1)
def _fashion_mnist(path: str) -> Dataset:
    """Fashion-MNIST (1708.07747), 28x28x1, 256 levels, 60,000 to train and 10,000 to test."""
    if path and not Path(path).is_dir():
        raise FileNotFoundError(f"config.data.path = {path}: no such folder")
    folder = Path(path) if path else FASHION_FOLDER if FASHION_FOLDER.is_dir() else FASHION_CACHE
    values = {split: _idx(f"{part}-images-idx3-ubyte", folder)[..., None] for split, part in (("train", "train"), ("test", "t10k"))}
    labels = {split: _idx(f"{part}-labels-idx1-ubyte", folder).astype(np.int32) for split, part in (("train", "train"), ("test", "t10k"))}
    return Dataset("fashion_mnist", values, labels, shift=128.0, scale=128.0, levels=256, num_classes=10)


LOADERS = {"digits": _digits, "fashion_mnist": _fashion_mnist}


class Batches:
    """Training batches by number, as a random-access source for grain: {"value", "label", "position"}, position being the global
    example index modulo 2^32 (after which noise repeats, with other data)."""

    def __init__(self, dataset: Dataset, batch: int, seed: int):
        self.values, self.labels = dataset.values["train"], dataset.labels["train"]
        self.batch, self.seed = batch, seed
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.values))

    def __len__(self) -> int:
        return sys.maxsize // self.batch

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        position = np.arange(k * self.batch, (k + 1) * self.batch)
        epoch, place = np.divmod(position, len(self.values))
        index = np.empty_like(place)
        for e in np.unique(epoch):
            index[epoch == e] = self.order(int(e))[place[epoch == e]]
        return {"value": self.values[index], "label": self.labels[index], "position": (position % 2**32).astype(np.uint32)}


def batches(dataset: Dataset, batch: int, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Batches `start`, `start` + 1, ... of the training stream, by grain."""
    source = grain.MapDataset.source(Batches(dataset, batch, seed))[start:]
    # a batch of data in memory is a gather of some 30 microseconds: a prefetching thread would cost more than it hides
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
