"""Files of weights, written as PyTorch writes them but by hand: read without PyTorch, and nothing in them is run."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest

from experiments import inert

NUMBERS = np.arange(6, dtype="<f4")


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def tensor(size=(2, 3), stride=(1, 2), offset=0, count=6, view=b""):
    """The opcodes of a tensor, which is a view of the storage "0"."""
    numbers = lambda values: b"(" + b"".join(b"J" + n.to_bytes(4, "little", signed=True) for n in values) + b"t"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + numbers([count])[1:-1] + view + b"tQ"
    rest = numbers([offset])[1:-1] + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def state_dict(value):
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + text("a.weight") + value + b"u."


def new(path, pickled, raw=NUMBERS.tobytes(), name="data.pkl"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"archive/{name}", pickled)
        archive.writestr("archive/data/0", raw)
    return path


def old(path, pickled, raw=NUMBERS.tobytes()):
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(part, 2) for part in (inert.MAGIC, 1001, about)]
    path.write_bytes(b"".join(parts) + pickled + pickle.dumps(["0"], 2) + (6).to_bytes(8, "little") + raw)
    return path


@pytest.mark.parametrize("write", [new, old])
def test_tensors(tmp_path, write):
    """Views with strides and offsets; of old files, the storages come after them."""
    view = b"N" if write is old else b""
    found = inert.read(write(tmp_path / "file", state_dict(tensor(view=view))))
    np.testing.assert_array_equal(found["a.weight"], NUMBERS.reshape(3, 2).T)
    found = inert.read(write(tmp_path / "file", state_dict(tensor((2,), (2,), 3, view=view))))
    np.testing.assert_array_equal(found["a.weight"], [3, 5])


def test_pickled_arrays(tmp_path):
    """A dictionary of dictionaries of arrays, in either order."""
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    for protocol in (2, 4):
        (tmp_path / "file").write_bytes(pickle.dumps({"a": {"b": array, "c": array.T.astype("f4")}}, protocol))
        found = inert.read(tmp_path / "file")
        np.testing.assert_array_equal(found["a.b"], array)
        np.testing.assert_array_equal(found["a.c"], array.T)


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_what_is_refused(tmp_path):
    """Programs, views outside of their numbers, numbers that are missing, TorchScript, truncated and unknown files: one line, and nothing is run."""
    path = tmp_path / "file"
    (tmp_path / "program").write_bytes(pickle.dumps({"a": Program(tmp_path / "made")}))
    (tmp_path / "ordered").write_bytes(pickle.dumps(collections.OrderedDict(a=1)))
    (tmp_path / "nothing").write_bytes(b"")
    wrong = [
        (lambda: tmp_path / "program", "it asks for posix.mkdir"),
        (lambda: tmp_path / "ordered", "it asks for collections.OrderedDict"),
        (lambda: tmp_path / "nothing", "it ends early"),
        (lambda: new(path, pickle.dumps({"a": Program(tmp_path / "made")})), "it asks for posix.mkdir"),
        (lambda: new(path, state_dict(tensor((2, 4)))), "lies outside"),
        (lambda: new(path, state_dict(tensor(offset=1))), "lies outside"),
        (lambda: new(path, state_dict(tensor((2, -3)))), "lies outside"),
        (lambda: new(path, state_dict(tensor((2, 30), (0, 0)))), "repeats its 6 numbers"),
        (lambda: new(path, state_dict(tensor(count=7))), "is not the 7 numbers"),
        (lambda: new(path, state_dict(tensor()), raw=NUMBERS.tobytes()[:-1]), "is not the 6 numbers"),
        (lambda: new(path, state_dict(text("word"))), "it has str under 'a.weight'"),
        (lambda: new(path, b"", name="constants.pkl"), "no data.pkl"),
        (lambda: old(path, state_dict(tensor(view=b"N")), NUMBERS.tobytes()[:-1]), "is not the 6 numbers"),
        (lambda: old(path, state_dict(tensor(count=1 << 30, view=b"N"))), "numbers that it should be"),
    ]
    for write, words in wrong:
        with pytest.raises(ValueError, match=words) as error:
            inert.read(write())
        assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()
    with pytest.raises(FileNotFoundError, match="no such file"):
        inert.read(tmp_path / "none")
