"""Data sets from files: (path, size) -> values {"train", "test"} [n, H, W, C] uint8, labels likewise [n] int32, and the number of classes (0: none).

Nothing is unpickled but arrays (`experiments.inert`), nothing is extracted to disk, and what is downloaded is kept only once its checksum is right.
"""

import gzip
import hashlib
import http.client
import io
import os
import shutil
import struct
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from experiments.inert import Arrays
from experiments.kept import sha256
from experiments.untrusted import AT_ONCE, Bounded, Npz, inside, npy, read_json

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sde-generative"
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


# --- Fashion-MNIST --------------------------------------------------------------------------------------------------------------------

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # the Debian package dataset-fashion-mnist
FASHION_CACHE = Path.home() / ".cache" / "fashion-mnist"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_LARGEST = 47_040_016  # bytes of the largest file, uncompressed
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
    try:
        if downloaded:
            file = FASHION_CACHE / (name + ".gz")
            instead = "pass --config.data.path=FOLDER with the IDX files of Fashion-MNIST, or install the Debian package dataset-fashion-mnist"
            raw = download(FASHION_URL + file.name, FASHION_LARGEST, instead)
        else:
            with open(file, "rb") as opened:
                raw = opened.read(FASHION_LARGEST + 1)
        content = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(FASHION_LARGEST + 1) if file.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read ({error}): delete it and try again") from None
    if hashlib.sha256(content).hexdigest() != FASHION_SHA256[name]:
        raise ValueError(f"{file} is not the {name} of Fashion-MNIST (its SHA-256 differs): delete it and try again")
    if downloaded:  # kept only now that it is known to be right
        keep(file, raw)
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def fashion_mnist(path: str) -> Source:
    """Fashion-MNIST (1708.07747), 28x28x1, 256 levels, 60,000 to train and 10,000 to test."""
    if path and not Path(path).is_dir():
        raise FileNotFoundError(f"config.data.path = {path}: no such folder")
    folder = Path(path) if path else FASHION_FOLDER if FASHION_FOLDER.is_dir() else FASHION_CACHE
    values = {split: _idx(f"{part}-images-idx3-ubyte", folder)[..., None] for split, part in (("train", "train"), ("test", "t10k"))}
    labels = {split: _idx(f"{part}-labels-idx1-ubyte", folder).astype(np.int32) for split, part in (("train", "train"), ("test", "t10k"))}
    return values, labels, 10


# --- CIFAR ----------------------------------------------------------------------------------------------------------------------------

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
CIFAR_MD5 = {  # as its page gives them
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
}
CIFAR_FILES = {
    10: {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    100: {"train": ["train"], "test": ["test"]},
}
CIFAR_SIZES = {"train": 50_000, "test": 10_000}
CIFAR_BYTES = 3200  # of an image at most, with its labels and the name of its file
LARGEST = 256 << 20  # bytes of an archive, packed or not, and of a record


MEMBERS = 1000  # of an archive at most


def _members(path: Path, wanted: dict[str, int]) -> dict[str, bytes]:
    """Contents by name of the wanted files, of so many bytes at most, in a folder, or in a tar archive that is not extracted."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.name in wanted and file.is_file()]
        for file in files:
            if file.stat().st_size > wanted[file.name]:
                raise ValueError(f"{file} has {file.stat().st_size} bytes: expected at most {wanted[file.name]}")
        return {file.name: file.read_bytes() for file in files}
    found = {}
    try:
        with open(path, "rb") as packed:
            zipped = packed.read(2) == b"\x1f\x8b"
            packed.seek(0)
            with tarfile.open(fileobj=Bounded(gzip.GzipFile(fileobj=packed) if zipped else packed, LARGEST), mode="r:") as archive:
                for i, member in enumerate(archive):
                    name = inside(path, member.name).name
                    if not 0 <= member.size <= wanted.get(name, LARGEST) or i == MEMBERS:
                        raise ValueError(f"{member.name[:80]}, member {i}, has {member.size} bytes")
                    if name in wanted and member.isreg() and not member.issparse():
                        content = archive.extractfile(member)
                        found[name] = b"".join(iter(lambda: content.read(AT_ONCE), b""))  # noqa: B023
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a tar archive ({error})") from None
    return found


def _cifar_batch(name: str, content: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3072], channel by channel, and labels of one file of either distribution."""
    if name.endswith(".bin"):
        rows = np.frombuffer(content, np.uint8)
        head = 1 if classes == 10 else 2  # CIFAR-100 has its coarse label first
        if rows.size % (head + 3072):
            raise ValueError(f"{name} of CIFAR-{classes} has {rows.size} bytes: expected a multiple of {head + 3072}")
        rows = rows.reshape(-1, head + 3072)
        return rows[:, head:], rows[:, head - 1]
    try:
        batch = Arrays(io.BytesIO(content), encoding="bytes").load()
        labels = np.fromiter(batch[b"labels" if classes == 10 else b"fine_labels"], np.int64)
        return batch[b"data"].value.astype(np.uint8).reshape(-1, 3072), labels
    except Exception as error:  # a wrong pickle raises anything
        raise ValueError(f"{name} is no batch of CIFAR-{classes} ({error})") from None


def cifar(classes: int, path: str) -> Source:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), 32x32x3: `path` is an archive (python or binary version), a folder that holds one, or a folder of
    the extracted files; empty: the binary archive is downloaded."""
    names = [name for name in CIFAR_MD5 if name.startswith(f"cifar-{classes}-")]
    place = Path(path) if path else CACHE / names[0]
    if not path and not place.exists():
        content = download(CIFAR_URL + names[0], LARGEST, f"pass --config.data.path=FOLDER with {' or '.join(names)}")
        if hashlib.md5(content).hexdigest() != CIFAR_MD5[names[0]]:
            raise ValueError(f"{CIFAR_URL + names[0]} is not what it should be (its MD5 differs): try again")
        keep(place, content)
    if not place.exists():
        raise FileNotFoundError(f"config.data.path = {path}: no such file or folder")
    if place.is_dir():
        place = next((place / name for name in names if (place / name).exists()), place)
    if place.is_file() and place.stat().st_size > LARGEST:
        raise ValueError(f"{place} has {place.stat().st_size >> 20} MiB: expected an archive of at most {LARGEST >> 20}")
    if place.name in CIFAR_MD5 and sha256(place, "md5") != CIFAR_MD5[place.name]:
        raise ValueError(f"{place} is not the archive of that name (its MD5 differs): delete it and try again")
    files = CIFAR_FILES[classes]
    bytes_of = {split: CIFAR_BYTES * CIFAR_SIZES[split] // len(part) + (1 << 16) for split, part in files.items()}
    found = _members(place, {name + end: bytes_of[split] for split, part in files.items() for name in part for end in ("", ".bin")})
    values, labels = {}, {}
    for split, part in files.items():
        missing = [name for name in part if name not in found and name + ".bin" not in found]
        if missing:
            raise FileNotFoundError(f"no {missing[0]}[.bin] of CIFAR-{classes} in {place}: expected {' or '.join(names)}, or what is in them")
        batches = [_cifar_batch(n, found[n], classes) for n in (name if name in found else name + ".bin" for name in part)]
        images, labels[split] = (np.concatenate(arrays) for arrays in zip(*batches))
        values[split] = np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels[split] = labels[split].astype(np.int32)
        if len(values[split]) != CIFAR_SIZES[split]:
            raise ValueError(f"{place} has {len(values[split])} images to {split}: expected {CIFAR_SIZES[split]}")
    return values, labels, classes


# --- folders of images ----------------------------------------------------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF")  # whatever the file's name: PIL runs Ghostscript for some others
PIXELS = Image.MAX_IMAGE_PIXELS
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")


def squared(file: Path, size: int) -> np.ndarray:
    """An image as [size, size, 3]: halved by boxes while it is twice too large, then resized bicubically, and its centre cut out, as ADM does.
    Upright as its EXIF data say, on white where it is transparent, with the high byte of 16-bit values."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {PIXELS:,}")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except Exception as error:  # a broken file raises anything
        raise ValueError(f"{file} cannot be read as an image ({error}): mend or remove it") from None
    if max(image.size) > 100 * min(image.size):
        raise ValueError(f"{file} has {image.width}x{image.height} pixels: too narrow for a square; remove it")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _prepared(root: Path, files: list[Path], size: int) -> np.ndarray:
    """All files [n, size, size, 3], resized once and then read from the cache, where they need not fit in memory."""
    stamp = "".join(f"{file.relative_to(root)} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)
    cached = CACHE / "images" / f"{hashlib.sha256(f'{root.resolve()} {size} {stamp}'.encode()).hexdigest()[:24]}.npy"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=cached.parent, suffix=".tmp")) / cached.name
        made = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(files), size, size, 3))
        try:
            with ThreadPoolExecutor() as pool:
                for i, image in enumerate(pool.map(lambda file: squared(file, size), files)):
                    made[i] = image
                    if (i + 1) % 10_000 == 0:
                        print(f"resized {i + 1}/{len(files)} images", flush=True)
            made.flush()
            temporary.rename(cached)
        finally:
            shutil.rmtree(temporary.parent)
    return npy(cached)


def folder(path: str, size: int) -> Source:
    """Any folder of images. Its subfolders train and val (or validation, test) are the splits; without them one image of `HELD_OUT`, chosen by its
    name, is for testing. The folders below are the classes, if there are any (those of ImageNet's validation images have to be made)."""
    root = Path(path)
    digest = lambda f: hashlib.sha256(str(f.relative_to(path)).encode()).hexdigest()
    if not path or not root.is_dir():
        raise FileNotFoundError(f"config.data.path = '{path}': expected a folder of images")
    if size < 1:
        raise ValueError(f"config.data.size = {size}: expected the side of the images in pixels, e.g. --config.data.size=64")
    every = sorted(
        Path(place) / name for place, _, names in os.walk(root, followlinks=True) for name in names if Path(name).suffix.lower() in ENDINGS
    )
    splits = {"train": root / "train", "test": next((root / name for name in ("val", "validation", "test") if (root / name).is_dir()), root / "val")}
    if all(part.is_dir() for part in splits.values()):
        files = {split: [f for f in every if part in f.parents] for split, part in splits.items()}
    else:
        chosen = lambda f: int(digest(f), 16) % HELD_OUT == 0
        root = splits["train"] if splits["train"].is_dir() else root
        splits = {"train": root, "test": root}
        files = {"train": [f for f in every if not chosen(f)], "test": [f for f in every if chosen(f)]}
    files = {split: sorted(found, key=digest) for split, found in files.items()}  # the first of them are of all classes
    for split, found in files.items():
        if not found:
            raise ValueError(
                f"{path} has no images to {split} (of {len(every)} in all): expected {', '.join(ENDINGS)}, in train/ and test/, or enough"
            )
    parts = {split: [f.relative_to(splits[split]).parts for f in found] for split, found in files.items()}
    lonely = [splits[split].joinpath(*p) for split, found in parts.items() for p in found if len(p) == 1]
    labelled = not lonely
    if lonely and len(lonely) < len(every):
        raise ValueError(
            f"{lonely[0]} is in no folder of a class, others of the {len(every)} images are: expected folders of classes in each split, or none"
        )
    names = sorted({p[0] for found in parts.values() for p in found}) if labelled else []
    number = {name: i for i, name in enumerate(names)}
    labels = {split: np.array([number[p[0]] if labelled else 0 for p in found], np.int32) for split, found in parts.items()}
    return {split: _prepared(root, found, size) for split, found in files.items()}, labels, len(names)


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


SOURCES = {
    "fashion_mnist": lambda path, size: fashion_mnist(path),
    "cifar10": lambda path, size: cifar(10, path),
    "cifar100": lambda path, size: cifar(100, path),
    "folder": folder,
    "npz": lambda path, size: npz(path),
}
