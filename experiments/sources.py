"""Data sets from files: (path, options of `experiments.data.READING`) -> the numbers u as they are in the files,
{"train", "test"} -> [n, ...] integers or floats; classes, likewise [n] integers; and what these stand for, integers or
names of folders, in order; () without labels.

Arrays, latents and pairs are here; see `experiments.archives`, `folders` and `records` for the others.
"""

import difflib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from experiments import units
from experiments.untrusted import Npz, npy, read_json

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sde-generative"
LARGEST = 256 << 20  # bytes of an archive, packed or not, and of a record
HELD_OUT = 20  # one of so many examples is for testing, where the files do not say which

Source = tuple[dict[str, np.ndarray], dict[str, np.ndarray | tuple], tuple]


def download(url: str, limit: int, instead: str) -> bytes:
    """Raises FileNotFoundError, saying what to do `instead`."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read(limit)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise FileNotFoundError(f"the download of {url} failed ({error}): {instead}") from None


def keep(file: Path, content: bytes) -> None:
    """Write a file at once; where that cannot be, say so and go on."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            temporary.write(content)
        Path(temporary.name).rename(file)
    except OSError as error:
        print(f"{file} cannot be kept ({error}): it has to be got again next time")


def _embeddings(arrays: dict[str, np.ndarray], counts: dict[str, int], path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """tokens and pooled of both splits of so many examples."""
    names, held = ("tokens", "pooled"), np.arange(sum(counts.values())) % HELD_OUT == HELD_OUT - 1
    own = "x_test" in arrays
    missing = [name for name in (*names, *(f"{name}_test" for name in names if own)) if name not in arrays]
    if missing:
        raise ValueError(f"{path} has embeddings without {missing[0]}: expected tokens and pooled, and both with _test if there is x_test")
    split = {
        "train": tuple(arrays[name] if own else arrays[name][~held[: len(arrays[name])]] for name in names),
        "test": tuple(arrays[f"{name}_test"] if own else arrays[name][held[: len(arrays[name])]] for name in names),
    }
    for part, found in split.items():
        for name, a, like, ndim in zip(names, found, split["train"], (3, 2)):
            if a.ndim != ndim or len(a) != counts[part] or a.shape[1:] != like.shape[1:]:
                raise ValueError(f"{path} has {name} {a.shape} to {part}: expected [{counts[part]}, ...], tokens [n, L, E] and pooled [n, P]")
            if not (np.issubdtype(a.dtype, np.floating) and np.isfinite(a).all()):
                raise ValueError(f"{path} has {name} of {a.dtype} to {part}: expected finite floats")
    return split


# what arrays of an .npz file are called, by what they are; the first is our name, which may end in _test
NAMES = {"x": ("x", "arr_0", "images", "data"), "y": ("y", "arr_1", "labels"), "tokens": ("tokens",), "pooled": ("pooled",)}


def named(path: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under our names, x, y, tokens, pooled, and these with _test. Raises ValueError for arrays of other names, and for
    two arrays of one meaning."""
    known = {name: ours for ours, names in NAMES.items() for name in names} | {f"{ours}_test": f"{ours}_test" for ours in NAMES}
    result = {}
    for name, array in arrays.items():
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{path} has the array '{name}', which nothing uses{hint} Expected {', '.join(known)}; remove or rename it")
        if known[name] in result:
            raise ValueError(f"{path} has two arrays of {known[name]}: expected one of {', '.join(NAMES[known[name]])}")
        result[known[name]] = array
    return result


def npz(path: str, options: dict | None = None) -> Source:
    """Arrays of an .npz file: integers, such as images [n, H, W, C] uint8, or any float array [n, ...] such as vectors or
    latents, under "x" (ADM's arr_0, images, data) and labels under "y" (arr_1, labels), or an encoder's embeddings of what
    each is of under "tokens" [n, L, E] and "pooled" [n, P]; "x_test", "y_test" and so on, or one example of `HELD_OUT`,
    for testing. options: `experiments.data.READING`, of which "classes" is used."""
    file = dict(Npz(path))
    arrays = named(path, file)
    x, y, own = arrays.get("x"), arrays.get("y"), "x_test" in arrays
    if x is None or x.ndim < 2 or x.dtype.kind not in "biuf":
        found = ", ".join(f"{name} {a.shape} of {a.dtype}" for name, a in file.items()) or "none"
        raise ValueError(
            f"{path} has the arrays {found}: expected x, integers such as images [n, H, W, C] or floats [n, ...] (of one number each: x[:, None])"
        )
    orphans = [name for name in arrays if name.endswith("_test") and (not own or name.removesuffix("_test") not in arrays)]
    if orphans:
        raise ValueError(f"{path} has {orphans[0]} without {orphans[0].removesuffix('_test') if own else 'x_test'}: expected both, or neither")
    for name, a in arrays.items():
        check_finite(path, name, a)
    held = np.arange(len(x)) % HELD_OUT == HELD_OUT - 1
    if not own and not held.any():
        raise ValueError(f"{path} has {len(x)} examples: expected at least {HELD_OUT}, as one of {HELD_OUT} is held out for testing, or x_test")
    if not own and y is not None and len(y) != len(x):
        raise ValueError(f"{path} has {len(y)} labels of {len(x)} examples")
    values = {"train": x, "test": arrays["x_test"]} if own else {"train": x[~held], "test": x[held]}
    for split, v in values.items():
        if not len(v) or not v[0].size or v.shape[1:] != x.shape[1:] or (v.dtype.kind == "f") != (x.dtype.kind == "f"):
            raise ValueError(f"{path} has {len(v)} examples {v.shape[1:]} of {v.dtype} to {split}: expected some, as x, {x.shape[1:]} of {x.dtype}")
    if {"tokens", "pooled"} & arrays.keys():
        if y is not None:
            raise ValueError(f"{path} has labels and embeddings: expected y, or tokens and pooled")
        return values, _embeddings(arrays, {split: len(v) for split, v in values.items()}, path), ()
    if y is None:
        return values, {split: np.zeros(len(v), np.int32) for split, v in values.items()}, ()
    if own and "y_test" not in arrays:
        raise ValueError(f"{path} has labels of one split only: expected both y and y_test, or neither")
    labels = {"train": y, "test": arrays["y_test"]} if own else {"train": y[~held], "test": y[held]}
    return values, *indexed({split: checked_labels(path, labels[split], len(values[split]), split) for split in labels}, options, path)


def check_finite(path: str, name: str, array: np.ndarray) -> None:
    """Raise ValueError, naming the first example, for an array [n, ...] with numbers that are not finite."""
    if array.dtype.kind != "f":
        return
    bad = [~np.isfinite(part.reshape(len(part), -1)).all(1) for part in units.blocks(array)] if array.ndim else []
    index = np.flatnonzero(np.concatenate(bad)) if bad else np.zeros(0)
    if index.size:
        value = next(value for value in array[index[0]].ravel() if not np.isfinite(value)) if array.ndim > 1 else array[index[0]]
        more = f" and {index.size - 1} more" if index.size > 1 else ""
        raise ValueError(
            f"{path}: {name}[{index[0]}]{more} of {len(array)} examples has the value {value}: expected finite numbers; remove or mend it"
        )


def checked_labels(path: str, y: np.ndarray, count: int, split: str) -> np.ndarray:
    """Labels [n] int64. Raises ValueError for any that are not integers from 0, or not as many as examples."""
    y = y.astype(np.int64) if y.dtype == np.bool_ else y
    if y.shape == (count,) and np.issubdtype(y.dtype, np.integer) and not (y < 0).any():
        return y.astype(np.int64)
    way = ""
    if y.ndim == 2 and len(y) == count:
        way = "; pass y[:, 0]" if y.shape[1] == 1 else "; one-hot labels are y.argmax(1)"
    elif y.dtype.kind == "f":
        way = "; continuous conditions are no labels; whole numbers are y.astype(int)"
    elif y.shape == (count,) and y.dtype.kind == "i":
        way = f", not {y.min()}"
    elif y.dtype.kind in "US":
        way = "; names are numbered by np.unique(y, return_inverse=True)"
    raise ValueError(f"{path} has labels {y.shape} of {y.dtype} to {split}: expected {count} integers from 0{way}")


def indexed(labels: dict[str, np.ndarray], options: dict | None, path: str) -> tuple[dict[str, np.ndarray], tuple]:
    """Any integers as classes 0, 1, ... of each split, and the integers that these stand for."""
    names = units.find_classes(labels, (options or {}).get("classes", 0), path)
    return {split: np.searchsorted(names, part).astype(np.int32) for split, part in labels.items()}, names


# --- latents --------------------------------------------------------------------------------------------------------------------------

LATENTS = "latents.json"


def latents(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """A folder that `experiments.autoencode` wrote, its arrays x.npy, y.npy, x_test.npy and y_test.npy mapped to memory: values [n, h, w, 2 c], mean
    and standard deviation, labels, and what its latents.json says."""
    instead = "expected a folder made by python -m experiments.autoencode"
    if not (Path(path) / LATENTS).is_file():
        raise FileNotFoundError(f"config.data.path = '{path}': {instead}")
    try:
        about = read_json(Path(path) / LATENTS)
        arrays = {n: npy(Path(path) / f"{n}.npy") for n in ("x", "y", "x_test", "y_test")}
        shape = tuple(about["shape"])
        for split in ("", "_test"):
            x, y = arrays["x" + split], arrays["y" + split]
            expected = (np.float32, (len(y), *shape[:-1], 2 * shape[-1]), np.int32, (len(y),))
            if (x.dtype, x.shape, y.dtype, y.shape) != expected or not len(y):
                raise ValueError(f"x{split} {x.shape} of {x.dtype} and y{split} {y.shape} of {y.dtype} for latents {shape}")
            if y.min() < 0 or y.max() > max(about["images"]["num_classes"] - 1, 0):
                raise ValueError(f"y{split} with labels {y.min()} to {y.max()} of {about['images']['num_classes']} classes")
        if not 0 < float(about["scale"]) < float("inf"):
            raise ValueError(f"the scale {about['scale']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"config.data.path = '{path}' is damaged ({error}): {instead}") from None
    return {"train": arrays["x"], "test": arrays["x_test"]}, {"train": np.asarray(arrays["y"]), "test": np.asarray(arrays["y_test"])}, about


# --- pairs ----------------------------------------------------------------------------------------------------------------------------

PAIRS = "pairs.json"


def pairs(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """A folder that `experiments.reflow` wrote, its arrays mapped to memory: x_0 (x.npy, x_test.npy), x_T/sigma(T) (source.npy), labels (y.npy), and
    what its pairs.json says."""
    instead = "expected a folder made by python -m experiments.reflow"
    if not (Path(path) / PAIRS).is_file():
        raise FileNotFoundError(f"config.data.path = '{path}': {instead}")
    try:
        about, found = read_json(Path(path) / PAIRS), {}
        shape, classes = tuple(about["shape"]), about["of"]["num_classes"]
        for split, end in (("train", ""), ("test", "_test")):
            x, source, y = found[split] = tuple(npy(Path(path) / f"{name}{end}.npy") for name in ("x", "source", "y"))
            expected = (np.float32, (len(y), *shape))
            if not len(y) or (x.dtype, x.shape) != expected or (source.dtype, source.shape) != expected or y.dtype != np.int32 or y.ndim != 1:
                raise ValueError(
                    f"x{end} {x.shape} of {x.dtype}, source{end} {source.shape} of {source.dtype}, y{end} {y.shape} for examples {shape}"
                )
            if y.min() < 0 or y.max() > max(classes - 1, 0):
                raise ValueError(f"y{end} with labels {y.min()} to {y.max()} of {classes} classes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"config.data.path = '{path}' is damaged ({error}): {instead}") from None
    values, starts, labels = ({split: part[i] for split, part in found.items()} for i in range(3))
    return values, starts, {split: np.asarray(y) for split, y in labels.items()}, about
