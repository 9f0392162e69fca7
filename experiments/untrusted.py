"""Files that others made: nothing in them is executed, and what they say of their sizes is compared with what they have before memory is given.

A zip archive may not unpack to more than `RATIO` times its size (images of two colours are compressed to a thirtieth, as float32 to an eightieth;
Deflate's bombs, to a thousandth), an array of NumPy is as long as its header says, a header is short. Names are never paths out of a folder.
Pickles are read by `experiments.inert`.
"""

import ast
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from safetensors import SafetensorError, safe_open

RATIO, FREE = 100, 64 << 20  # an archive unpacks to at most RATIO times its bytes, or to FREE bytes
AT_ONCE = 1 << 20  # bytes of an archive's directory, or of a name in it
NPY_HEADER, TENSORS_HEADER, JSON = 10_000, 4 << 20, 16 << 20  # bytes at most; JSON includes the configs, logs and manifests of runs


def inside(folder: str | Path, name: str) -> Path:
    """folder/name. Raises ValueError if `name` is absolute, goes up by "..", or leads out of `folder` by a link."""
    place = Path(folder) / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or not name:
        raise ValueError(f"{folder} has the name '{name[:80]}': expected one inside of the folder")
    if not place.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{place} is a link out of {folder}: expected a file")
    return place


def memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Bounded:
    """A file for the readers of archives, which take the length of names and directories from the file: raises ValueError for a read of more than
    `AT_ONCE`, or beyond `end`."""

    def __init__(self, file: io.BufferedIOBase, end: int):
        self.file, self.end, self.tell, self.close = file, end, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        size = AT_ONCE + 1 if size is None or size < 0 else size
        content = self.file.read(min(size, AT_ONCE + 1))
        if len(content) > AT_ONCE or self.tell() > self.end:
            raise ValueError(f"it has a name or a directory of more than {AT_ONCE >> 20} MiB, or more than {self.end >> 20} MiB in all")
        return content

    def seek(self, place: int, whence: int = 0) -> int:
        if whence == 0 and place > self.end:
            raise ValueError(f"it is of more than {self.end >> 20} MiB")
        return self.file.seek(place, whence)

    def seekable(self) -> bool:
        return True


def members(path: str | Path) -> dict[str, zipfile.ZipInfo]:
    """What a zip archive has, by name. Raises ValueError for names of other folders or given twice, and where all would unpack to too much."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        found = zipfile.ZipFile(Bounded(file, size)).infolist()
    result = {inside(path, member.filename).relative_to(path).as_posix(): member for member in found}
    if len(result) < len(found):
        raise ValueError("it has a name twice")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in found):
        raise ValueError("it is not compressed by Deflate")
    if sum(member.file_size for member in found) > max(RATIO * size, FREE):
        raise ValueError(f"its {size} bytes would unpack to {sum(member.file_size for member in found)}")
    return result


def _array(file: io.BufferedIOBase, size: int) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """dtype, shape, Fortran order and offset of the array in an .npy file of `size` bytes, of which only the header is read."""
    start = file.read(12)
    width = {1: 2, 2: 4}.get(start[6]) if start[:6] == np.lib.format.MAGIC_PREFIX and len(start) == 12 else None
    length = int.from_bytes(start[8 : 8 + width], "little") if width else NPY_HEADER + 1
    if length > NPY_HEADER:
        raise ValueError("it is no array in NumPy's format, or has a long header")
    header = ast.literal_eval((start[8 + width :] + file.read(length + width - 4)).decode("latin1"))
    dtype, shape, offset = np.dtype(header["descr"]), header["shape"], 8 + width + length
    if dtype.kind not in "biufUS" or not dtype.itemsize:
        raise ValueError(f"it has an array of {dtype}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != size - offset:
        raise ValueError(f"it has an array {shape!s:.80} of {dtype} in {size - offset} bytes")
    return dtype, shape, bool(header["fortran_order"]), offset


class Npz(Mapping):
    """The arrays of an .npz file by name, each read when it is asked for.

    Raises FileNotFoundError if there is no such file, and ValueError, which names it, if it or an array is damaged, of objects, or too large."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} cannot be read: no such file")
        self.members = self._reading(lambda: {name.removesuffix(".npy"): member for name, member in members(path).items()})

    def _reading(self, read):
        try:
            return read()
        except Exception as error:  # a wrong file raises anything
            raise ValueError(f"{self.path} cannot be read as an .npz file of arrays ({error or type(error).__name__})") from None

    def _array(self, name: str) -> np.ndarray:
        member = self.members[name]
        if member.file_size > memory():
            raise ValueError(
                f"{name} has {member.file_size >> 30} GiB, this machine {memory() >> 30}: write ArrayRecord files, by experiments.records"
            )
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            dtype, shape, fortran, _ = _array(file, member.file_size)
            array = np.empty(math.prod(shape), dtype)
            view, done = array.view(np.uint8), 0
            while part := file.read(min(AT_ONCE, array.nbytes - done) or 1):  # the last read, of nothing, checks the sum
                view[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done += len(part)
        if done != array.nbytes:
            raise ValueError(f"{name} ends early")
        return array.reshape(shape, order="F" if fortran else "C")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.members:
            raise KeyError(name)
        return self._reading(lambda: self._array(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def npy(path: str | Path) -> np.memmap | np.ndarray:
    """The array of an .npy file, mapped to memory for reading. Raises FileNotFoundError, and ValueError for a file that is damaged or of objects."""
    try:
        with open(path, "rb") as file:
            dtype, shape, fortran, offset = _array(file, Path(path).stat().st_size)
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", offset, shape, order) if math.prod(shape) else np.empty(shape, dtype, order)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # a wrong file raises anything
        raise ValueError(f"{path} cannot be read as an .npy file ({error or type(error).__name__})") from None


def tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file by name, and its metadata. The library checks that the shapes in the header are those of all its bytes.

    Raises FileNotFoundError if there is no such file, ValueError if it is damaged, or larger than this machine.
    """
    try:
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > TENSORS_HEADER or size > memory():
            raise ValueError(f"{size} bytes with a header of {length}")
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no safetensors file of arrays ({error})") from None


def read_json(path: str | Path):
    """What a JSON file says. Raises FileNotFoundError if there is none, ValueError for one that is damaged, or of more than `JSON` bytes."""
    try:
        with open(path, "rb") as file:
            content = file.read(JSON + 1)
        if len(content) > JSON:
            raise ValueError(f"it has more than {JSON >> 20} MiB")
        return json.loads(content)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
