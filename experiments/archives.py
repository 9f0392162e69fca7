"""The published archives of Fashion-MNIST and CIFAR, as a `sources.Source`.

Nothing is unpickled but arrays (`experiments.inert`), nothing is extracted to disk, and what is downloaded is kept only once its checksum is right.
"""

import gzip
import hashlib
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np

from experiments.inert import Arrays
from experiments.kept import sha256
from experiments.sources import CACHE, LARGEST, Source, download, keep
from experiments.untrusted import AT_ONCE, Bounded, inside

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
    return values, labels, tuple(range(10))


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
    return values, labels, tuple(range(classes))
