"""ArrayRecord files (https://github.com/google/array_record): read where they lie, record by record, so that data need not fit in memory.

python -m experiments.records --name=folder --path=FOLDER --size=64 --out=runs/records writes any data set as train.array_record and
test.array_record; --config.data.name=array_record --config.data.path=runs/records trains on them.

A record is a safetensors file of its own: "x", integers such as uint8 [H, W, C], or floats [...], of one shape and type in all
records, and of labelled data "y", an integer []. Others write it without us:
ArrayRecordWriter(path, "group_size:1").write(safetensors.numpy.save({"x": x, "y": y})).
"""

import glob
import hashlib
import io
from pathlib import Path

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from experiments import cli
from experiments.sources import CACHE, HELD_OUT, LARGEST, Source, indexed, keep
from experiments.untrusted import npy

TYPES = (np.dtype("uint8"), np.dtype("uint16"), np.dtype("float32"), np.dtype("float64"))
CLASSES = 2**20  # a label above is taken for damage
SCAN = 1024  # records at once


def writer(path: Path):
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:  # grain has it on Linux and macOS
        raise ValueError(f"ArrayRecord files need the package array_record ({error}): pip install array_record") from None
    return ArrayRecordWriter(str(path), "group_size:1")


def write(file: Path, values, labels=None, raw=np.asarray) -> None:
    """Examples [n, ...] and, if there are any, labels [n] as one ArrayRecord file, which is there once it is whole. raw: what is
    written of an example's values."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")  # one of an interrupted command is written over
    out = writer(temporary)
    for i in range(len(values)):
        label = {} if labels is None else {"y": np.asarray(labels[i], np.int32)}
        out.write(save({"x": np.ascontiguousarray(raw(values[i])), **label}))
    out.close()
    temporary.rename(file)


class Records:
    """Examples [n, ...] of ArrayRecord files, read when they are asked for: an array as far as indices along the first axis go.

    numbers: of the records that these are, in the order of the files. Raises ValueError, naming it, for a record that is not as the first.
    """

    def __init__(self, files: list[str], numbers: np.ndarray | None = None):
        try:
            self.source = grain.sources.ArrayRecordDataSource(files)
            self.files, self.numbers = files, np.arange(len(self.source)) if numbers is None else numbers
        except ImportError as error:
            raise ValueError(f"ArrayRecord files need the package array_record ({error}): pip install array_record") from None
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{files[0]} (of {len(files)}) cannot be read as ArrayRecord files ({error})") from None
        if not len(self.numbers):
            raise ValueError(f"{files[0]} (of {len(files)}) has no records")
        first = self.read(self.numbers[:1], like=None)[0]["x"]
        self.shape, self.dtype = (len(self.numbers), *first.shape), first.dtype

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index) -> np.ndarray:
        """Of an integer, a slice, or integers [b]: [...] or [b, ...]."""
        numbers = self.numbers[index]
        values = [record["x"] for record in self.read(np.atleast_1d(numbers), like=self)]
        return values[0] if np.ndim(numbers) == 0 else np.stack(values) if values else np.zeros((0, *self.shape[1:]), self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def read(self, numbers: np.ndarray, like: "Records | None") -> list[dict[str, np.ndarray]]:
        """The records of these numbers, each checked against the shape and type of `like`, if it is given."""
        try:
            contents = self.source.__getitems__([int(n) for n in numbers]) if len(numbers) else []
        except RuntimeError as error:
            raise ValueError(f"{self.files[0]} (of {len(self.files)}) is damaged ({error})") from None
        return [self.decode(content, int(n), like) for content, n in zip(contents, numbers)]

    def decode(self, content: bytes, number: int, like: "Records | None") -> dict[str, np.ndarray]:
        where = f"record {number} of {self.files[0]} (of {len(self.files)})"
        try:
            record = load(content) if len(content) <= LARGEST else {}
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{where} is no safetensors file ({error}): see experiments/records.py") from None
        x, y = record.get("x"), record.get("y")
        if x is None or x.ndim < 1 or x.dtype not in TYPES or (x.dtype.kind == "f" and not np.isfinite(x).all()):
            raise ValueError(f"{where} has {', '.join(record) or 'nothing'}: expected x, {', '.join(map(str, TYPES))} and finite, and y")
        if like is not None and (x.shape, x.dtype) != (like.shape[1:], like.dtype):
            raise ValueError(f"{where} has x {x.shape} of {x.dtype}: expected {like.shape[1:]} of {like.dtype}, as the first")
        if y is not None and not (y.shape == () and np.issubdtype(y.dtype, np.integer) and 0 <= y < CLASSES):
            raise ValueError(f"{where} has y {y.shape} of {y.dtype}: expected one integer from 0 to {CLASSES - 1}")
        return record

    def labels(self) -> np.ndarray:
        """y of every record, [n] int32, -1 where there is none. All are read once, and what they had is kept in the cache."""
        stamp = "".join(f"{Path(f).resolve()} {Path(f).stat().st_size} {Path(f).stat().st_mtime_ns}\n" for f in self.files)
        cached = CACHE / "records" / f"{hashlib.sha256(stamp.encode() + self.numbers.tobytes()).hexdigest()[:24]}.npy"
        if cached.exists():
            return np.array(npy(cached))
        found = []
        for start in range(0, len(self), SCAN):
            found += [int(record.get("y", -1)) for record in self.read(self.numbers[start : start + SCAN], like=self)]
        result, content = np.array(found, np.int32), io.BytesIO()
        np.save(content, result)
        keep(cached, content.getvalue())
        return result


def source(path: str, options: dict | None = None) -> Source:
    """ArrayRecord files: a folder of train*.array_record and test*.array_record (or val*), or one file or a pattern such as FOLDER/part-*, of which
    one record of `HELD_OUT` is for testing. options: as of `sources.npz`."""
    place = Path(path)
    if path and place.is_dir():
        files = {split: sorted(map(str, place.glob(f"{split}*.array_record"))) for split in ("train", "test", "val")}
        files = {"train": files["train"], "test": files["test"] or files["val"]}
        if not all(files.values()):
            raise FileNotFoundError(f"config.data.path = '{path}' has no files train*.array_record and test*.array_record")
        values = {split: Records(found) for split, found in files.items()}
    else:
        found = sorted(glob.glob(path))
        if not found:
            raise FileNotFoundError(f"config.data.path = '{path}': no such file; expected ArrayRecord files, as experiments.records writes")
        every = Records(found)
        held = every.numbers % HELD_OUT == HELD_OUT - 1
        if not held.any():
            raise ValueError(f"{path} has {len(every)} records: expected at least {HELD_OUT}, or a folder with train*.array_record and test*")
        values = {"train": Records(found, every.numbers[~held]), "test": Records(found, every.numbers[held])}
    train, test = values.values()
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise ValueError(f"{path} has examples {train.shape[1:]} of {train.dtype} to train, {test.shape[1:]} of {test.dtype} to test")
    labels = {split: records.labels() for split, records in values.items()}
    labelled = np.concatenate(list(labels.values())) >= 0
    if labelled.any() and not labelled.all():
        raise ValueError(f"{path} has {labelled.sum()} labels y of {len(labelled)} records: expected all, or none")
    if not labelled.any():
        return values, {split: np.zeros_like(found) for split, found in labels.items()}, ()
    return values, *indexed(labels, options, path)


def main():
    from experiments import data

    f = flags.FLAGS
    dataset = data.load(ConfigDict({"name": f.name, "path": f.path, "size": f.size}))
    first = dataset.raw(dataset.values["train"][:1])
    if first.dtype not in TYPES or isinstance(dataset, data.Latents) or dataset.embeddings:
        raise ValueError(f"--name={f.name} has {first.dtype}: records hold {', '.join(map(str, TYPES))}, and labels; expected folder, npz or such")
    for split, values in dataset.values.items():
        file = Path(f.out) / f"{split}.array_record"
        write(file, values, dataset.labels_written(dataset.labels[split]) if dataset.num_classes else None, dataset.raw)
        print(f"{len(values)} examples {dataset.shape}: wrote {file}")


if __name__ == "__main__":
    flags.DEFINE_string("name", "folder", "The data set: a name of config.data.name.")
    flags.DEFINE_string("path", "", "Its file or folder.")
    flags.DEFINE_integer("size", 0, "The side of the images of a folder.")
    flags.DEFINE_string("out", None, "Folder of the files.", required=True)
    cli.run(main)
