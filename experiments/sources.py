"""Data sets from files: (path, size) -> values {"train", "test"} [n, H, W, C] uint8, labels likewise [n] int32, and the number of classes (0: none).

Arrays, latents and pairs are here; see `experiments.archives`, `folders` and `records` for the others.
"""

import http.client
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from experiments.untrusted import Npz, npy, read_json

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sde-generative"
LARGEST = 256 << 20  # bytes of an archive, packed or not, and of a record
HELD_OUT = 20  # one of so many examples is for testing, where the files do not say which

Source = tuple[dict[str, np.ndarray], dict[str, np.ndarray | tuple], int]


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


def npz(path: str) -> Source:
    """Arrays of an .npz file: images [n, H, W, C] uint8, or any float array [n, ...] such as latents, under "x" (ADM's arr_0, images, data) and
    labels under "y" (arr_1, labels), or an encoder's embeddings of what each is of under "tokens" [n, L, E] and "pooled" [n, P]; "x_test",
    "y_test" and so on, or one example of `HELD_OUT`, for testing."""
    arrays = dict(Npz(path))
    first = lambda names: next((arrays[name] for name in names if name in arrays), None)
    x, y = first(("x", "arr_0", "images", "data")), first(("y", "arr_1", "labels"))
    if x is None or x.ndim < 2 or not (x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating)):
        raise ValueError(f"{path} has the arrays {', '.join(arrays) or 'none'}: expected x, uint8 images [n, H, W, C] or floats [n, ...]")
    if "x_test" in arrays:
        values, labels = {"train": x, "test": arrays["x_test"]}, {"train": y, "test": arrays.get("y_test")}
    else:
        held = np.arange(len(x)) % HELD_OUT == HELD_OUT - 1
        if y is not None and len(y) != len(x):
            raise ValueError(f"{path} has {len(y)} labels of {len(x)} examples")
        values, labels = {"train": x[~held], "test": x[held]}, {split: None if y is None else y[i] for split, i in (("train", ~held), ("test", held))}
    for split, v in values.items():
        if not len(v) or v.shape[1:] != x.shape[1:] or (v.dtype == np.uint8) != (x.dtype == np.uint8):
            raise ValueError(f"{path} has {len(v)} examples {v.shape[1:]} of {v.dtype} to {split}: expected some, as x, {x.shape[1:]} of {x.dtype}")
        if v.dtype != np.uint8 and not (np.isfinite(v).all() and v.std() > 0):
            raise ValueError(f"{path} has values to {split} that are not finite, or all the same")
        got = labels[split]
        if got is not None and not (got.shape == (len(v),) and np.issubdtype(got.dtype, np.integer) and got.min() >= 0):
            raise ValueError(f"{path} has labels {got.shape} of {got.dtype} to {split}: expected {len(v)} integers from 0")
    if (labels["train"] is None) != (labels["test"] is None):
        raise ValueError(f"{path} has labels of one split only: expected both y and y_test, or neither")
    classes = 0 if labels["train"] is None else 1 + max(int(got.max()) for got in labels.values())
    values = {split: v.astype(np.uint8 if x.dtype == np.uint8 else np.float32, copy=False) for split, v in values.items()}
    if {"tokens", "pooled"} & arrays.keys():
        if classes:
            raise ValueError(f"{path} has labels and embeddings: expected y, or tokens and pooled")
        return values, _embeddings(arrays, {split: len(v) for split, v in values.items()}, path), 0
    return values, {split: np.zeros(len(v), np.int32) if not classes else labels[split].astype(np.int32) for split, v in values.items()}, classes


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
