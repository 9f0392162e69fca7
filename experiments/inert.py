"""Pickles, read without executing them: whatever they name becomes an inert stand-in, or is refused.

What is read: NumPy arrays of numbers in lists and dictionaries, and the tensors of a state dict that `torch.save` wrote, as a zip archive (PyTorch
from 1.6) or as the stream of pickles of older versions. Sizes are what the file holds, not what it says.
"""

import pickle
import zipfile
from pathlib import Path

import numpy as np

from experiments import untrusted

LARGEST = 256 << 20  # bytes of a file of weights: Inception's have 95 MiB
LEAVES, DEPTH = 10_000, 16  # arrays of a file, and dictionaries in dictionaries
NUMBERS = ("u1", "i4", "i8", "f2", "f4", "f8")


class Array:
    """What a pickled NumPy array becomes: nothing of NumPy is called with what the file says but `frombuffer`, on its own bytes."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(raw, bytes | bytearray):  # of a number there would be as many zeros
            raise pickle.UnpicklingError("it has an array without its bytes")
        self.value = np.frombuffer(bytes(raw), dtype.name).reshape(shape, order="F" if fortran else "C")


class Dtype:
    """Of a pickled array of numbers."""

    def __init__(self, name, *_):
        self.name = name.decode() if isinstance(name, bytes) else name
        if self.name not in NUMBERS:
            raise pickle.UnpicklingError(f"it has an array of {self.name:.20}" if isinstance(self.name, str) else "it has an array of no numbers")

    def __setstate__(self, state):
        pass


def _encoded(text: str, coding: str) -> bytes:
    if coding != "latin1":
        raise pickle.UnpicklingError(f"it is coded as {coding}")
    return text.encode(coding)


def _as_list(count: int | None):
    """Reads a tuple of `count` objects, or of those from a mark, as a list."""

    def load(reader):
        if count is None:
            items = reader.pop_mark()
        else:
            items = [reader.stack.pop() for _ in range(count)][::-1]
        reader.append(items)

    return load


class Arrays(pickle._Unpickler):
    """Reads pickles of lists, numbers and arrays of numbers, by stand-ins, and refuses whatever else they ask for.

    By Python's own reader: that in C gives as much memory as the largest number of an object that the file names, whatever it has. Tuples become
    lists, which are no keys: to hash a tuple of tuples that are all one takes 2^depth steps.
    """

    dispatch = pickle._Unpickler.dispatch | {
        pickle.TUPLE[0]: _as_list(None),
        **{code[0]: _as_list(n) for n, code in enumerate((pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3))},
    }

    stand_ins = {
        ("_codecs", "encode"): _encoded,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: Array(),
        ("numpy", "ndarray"): None,  # named, never called
        ("numpy", "dtype"): Dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self.stand_ins:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.stand_ins[module, name]


class Storage:
    """The numbers that tensors are views of, by the name of their place in the file; `raw` bytes follow once they are read."""

    def __init__(self, dtype: str, key: str, count: int):
        self.dtype, self.key, self.count, self.raw = np.dtype(dtype), key, count, None

    def values(self) -> np.ndarray:
        if self.raw is None or len(self.raw) != self.count * self.dtype.itemsize:
            raise pickle.UnpicklingError(f"the storage {self.key} is not the {self.count} numbers that it should be")
        return np.frombuffer(self.raw, self.dtype)

    def __setstate__(self, state):
        pass


class Tensor:
    """A pickled tensor: a view of a storage that may not have been read yet."""

    def __init__(self, storage, offset, size, stride, *_):
        self.parts = storage, offset, size, stride

    def __setstate__(self, state):
        pass

    def array(self) -> np.ndarray:
        """A copy. Raises UnpicklingError for a view beyond its storage."""
        storage, offset, size, stride = self.parts
        values = storage.values()
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if len(size) != len(stride) or min([offset, *size, *stride]) < 0 or (0 not in size and last >= len(values)):
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} lies outside of its {len(values)} numbers")
        if np.prod([1.0, *size]) > len(values):
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} repeats its {len(values)} numbers")
        view = np.lib.stride_tricks.as_strided(values[offset:], size, [step * storage.dtype.itemsize for step in stride])
        return np.array(view)


class Ordered(dict):
    """What an OrderedDict becomes; the version numbers that a state dict carries are dropped."""

    def __setstate__(self, state):
        pass


class Tensors(Arrays):
    """Reads the pickle of a state dict, whose storages lie elsewhere in the file and are collected in `storages` by key."""

    storage_types = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "LongStorage": "i8", "IntStorage": "i4", "ByteStorage": "u1"}
    stand_ins = {
        **Arrays.stand_ins,
        ("collections", "OrderedDict"): Ordered,
        ("torch._utils", "_rebuild_tensor_v2"): Tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        **{("torch", name): dtype for name, dtype in storage_types.items()},
    }

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages = {}

    def persistent_load(self, found):
        try:
            word, dtype, key, _, count, *view = found
            assert word == "storage" and isinstance(key, str) and isinstance(count, int) and dtype in self.storage_types.values()
            assert view in ([], [None])  # a view of a storage is of PyTorch before 0.4
        except (AssertionError, TypeError, ValueError):
            raise pickle.UnpicklingError("it has a reference to no storage") from None
        return self.storages.setdefault(key, Storage(dtype, key, count))


MAGIC = 0x1950A86A20F9469CFC6C  # the first number of an old file of PyTorch


def _of_zip(path: Path):
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: member for name, member in untrusted.members(path).items()}
        if "data.pkl" not in members or sum(member.file_size for member in members.values()) > LARGEST:
            raise pickle.UnpicklingError(f"it has no data.pkl, or more than {LARGEST >> 20} MiB")
        if "constants.pkl" in members:
            raise pickle.UnpicklingError("it is a TorchScript archive, a program")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        with archive.open(members["data.pkl"]) as file:
            reader = Tensors(file)
            found = reader.load()
        for key, storage in reader.storages.items():
            storage.raw = archive.read(members[f"data/{key}"])
    return found


def _of_pickles(path: Path):
    with open(path, "rb") as file:
        first = Arrays(file).load()
        if first != MAGIC:
            return first
        version, about = Arrays(file).load(), Arrays(file).load()
        if version != 1001 or not about["little_endian"]:
            raise pickle.UnpicklingError("it is of another version, or its numbers are big-endian")
        reader = Tensors(file)
        found, keys = reader.load(), Arrays(file).load()
        for key in keys:
            storage, count = reader.storages[key], int.from_bytes(file.read(8), "little")
            storage.raw = file.read(min(count, storage.count) * storage.dtype.itemsize)
    return found


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict that `torch.save` wrote, or of a pickled dictionary of NumPy arrays, by names joined with "."; of a dictionary in
    it too. Raises ValueError if the file is neither, FileNotFoundError if there is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size >> 20} MiB: expected a file of weights of at most {LARGEST >> 20}")

    found, total, visited = {}, 0, 0

    def gather(tree, prefix="", depth=0):
        nonlocal total, visited
        visited += 1
        if visited > LEAVES:
            raise pickle.UnpicklingError(f"it has more than {LEAVES} arrays")
        if isinstance(tree, dict) and depth < DEPTH:
            for key, value in tree.items():
                gather(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
            return
        if not isinstance(tree, Array | Tensor):
            raise pickle.UnpicklingError(f"it has {type(tree).__name__} under '{prefix:.80}'")
        found[prefix] = tree.value if isinstance(tree, Array) else tree.array()
        total += found[prefix].nbytes
        if total > 2 * path.stat().st_size:  # the same numbers again and again
            raise pickle.UnpicklingError(f"its {path.stat().st_size} bytes are arrays of more than {total}")

    try:
        gather(_of_zip(path) if zipfile.is_zipfile(path) else _of_pickles(path))
        return found
    except Exception as error:  # a wrong file raises anything
        why = str(error) or "it ends early"
        raise ValueError(f"{path} cannot be read as weights ({why}): expected the arrays of torch.save, or a pickled dictionary of them") from None
