"""Files made to do harm, to every reader that could meet them: refused in one line within a second and 100 MB, and nothing in them is run.

Each reader runs in a process of its own, forked of one that has done the imports, whose peak of memory is compared with what it began with.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import runpy
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import SERVER

SECONDS, MEGABYTES = 1.0, 100
GIGABYTE = 1 << 30
HERE = Path(__file__)


class Malice:
    """Makes the folder "run" where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("run",)


PICKLE = pickle.dumps(Malice())


def header(shape, descr="<f4", version=1, length=None) -> bytes:
    """Of an .npy file."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11 + 2 * (version > 1)) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + (length or len(text)).to_bytes(2 if version == 1 else 4, "little") + text


def sparse(path: Path, start: bytes, size: int = GIGABYTE + 1000) -> None:
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


def deflated_zeros(start: bytes = b"") -> bytes:
    """gzip of `start` and 1 GB of zeros, made at once: the deflated zeros of a MiB repeat."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + first + block * 1024 + b"\x03\0" + struct.pack("<II", 0, (len(start) + GIGABYTE) % 2**32)


NAMES = ("x", "arr_0", "mu", "sigma", "times", "n")  # of the arrays that some reader wants


def npz(content: bytes, names=NAMES, method=zipfile.ZIP_STORED):
    def write(path: Path):
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in names:
                archive.writestr(f"{name}.npy", content)

    return write


def bomb(start: bytes):
    """The first array is `start` and 1 GB of zeros."""

    def write(path: Path):
        packed = deflated_zeros(start)[10:-8]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{NAMES[0]}.npy", packed)
            for name in NAMES[1:]:
                archive.writestr(f"{name}.npy", header((0,)))
        content = bytearray(path.read_bytes())
        for place in (8, content.index(b"PK\1\2") + 10):  # it was stored: now it is deflated
            content[place : place + 2] = b"\x08\0"
            content[place + 14 : place + 18] = (len(start) + GIGABYTE).to_bytes(4, "little")
        path.write_bytes(content)

    return write


def lying_archive(path: Path):
    """A directory that says that the array has 1 TB."""
    npz(header((4,)) + bytes(16))(path)
    content = bytearray(path.read_bytes())
    for place in [i for i in range(len(content)) if content[i : i + 4] == b"PK\1\2"]:
        content[place + 24 : place + 28] = b"\xfe\xff\xff\xff"  # the unpacked size
    path.write_bytes(content)


def twice(path: Path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("x.npy", header((0,)))


directory = lambda path: sparse(path, b"PK") or open(path, "ab").write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, GIGABYTE, 1000, 0))
array = header((4,)) + bytes(16)
NPZ = {
    "a pickle": lambda path: path.write_bytes(PICKLE),
    "an npy of a pickle": npz(header((1,), "|O") + PICKLE),
    "an npy that is a pickle": npz(PICKLE),
    "a header of 1 GB, declared": npz(header((4,), version=2, length=GIGABYTE) + bytes(16)),
    "a header of 1 GB, packed": bomb(b"\x93NUMPY\2\0" + GIGABYTE.to_bytes(4, "little")),
    "an array of 10^12": npz(header((10**6, 10**6)) + bytes(16)),
    "a size beyond 64 bits": npz(header((2**62, 4)) + bytes(16)),
    "a negative shape": npz(header((-4,)) + bytes(16)),
    "a shape of brackets": npz(header("(" * 4000 + ")" * 4000)),
    "numbers of no bytes": npz(header((2**40,), "|S0")),
    "a zip bomb": bomb(header((GIGABYTE,), "|u1")),
    "a size that is a lie": lying_archive,
    "a directory of 1 GB": directory,
    "a name up the tree": npz(array, [*NAMES, "../../run"]),
    "an absolute name": npz(array, [*NAMES, "/tmp/run"]),
    "a name twice": twice,
    "packed by bzip2": npz(array, method=zipfile.ZIP_BZIP2),
}
NPY = {
    "a pickle": lambda path: path.write_bytes(PICKLE),
    "objects": lambda path: path.write_bytes(header((1,), "|O") + PICKLE),
    "a header of 1 GB": lambda path: sparse(path, b"\x93NUMPY\2\0" + GIGABYTE.to_bytes(4, "little")),
    "an array of 10^12": lambda path: path.write_bytes(header((10**6, 10**6)) + bytes(16)),
}
JSON = {
    "1 GB": lambda path: sparse(path, b"{"),
    "brackets": lambda path: path.write_text("[" * 1_000_000),
    "a pickle": lambda path: path.write_bytes(PICKLE),
}


def tensors(said: dict, length: int | None = None, rest: bytes = bytes(16)):
    def write(path: Path):
        text = json.dumps(said).encode()
        path.write_bytes((length or len(text)).to_bytes(8, "little") + text + rest)

    return write


entry = lambda shape, end: {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
TENSORS = {
    "a pickle": lambda path: path.write_bytes(PICKLE),
    "a header of 1 GB": lambda path: sparse(path, GIGABYTE.to_bytes(8, "little") + b"{"),
    "a header of 90 MB": tensors({"__metadata__": {"a": "b" * 90_000_000}, **entry([4], 16)}),
    "a header of 2^63": tensors(entry([4], 16), 2**63),
    "an array of 10^12": tensors(entry([10**6, 10**6], 16)),
    "an array that overflows": tensors(entry([2**62, 16], 16)),
    "offsets beyond the file": tensors(entry([10**6, 10**6], 4 * 10**12)),
}

mark = lambda *parts: b"(" + b"".join(parts)
text = lambda word: b"X" + len(word).to_bytes(4, "little") + word.encode()
nested = lambda wrap, inner=b"]": inner + b"".join(wrap(i) for i in range(40)) + b"."
zeros_of = (
    b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x01\x85cnumpy\ndtype\n("
    + text("u1")
    + b"tR\x89\x8a\x06"
    + (10**12).to_bytes(6, "little")
    + b"tb"
)
PICKLES = {
    "a program": PICKLE,
    "a memo of 10^9": b"]r" + (10**9).to_bytes(4, "little") + b"0}.",
    "an array of 10^12 zeros": b"}" + text("data") + zeros_of + b"s.",
    "keys of keys": b"}" + b"]\x85" + b"\x94h\0\x86".replace(b"\x94h\0", b"q\0h\0") * 40 + b"K\0s.",
    "dictionaries of dictionaries": nested(lambda i: b"q%c0}(Kah%cKbh%cu" % (i, i, i), b"}"),
    "bytes of 1 TB": b"}" + text("data") + b"\x8e" + (10**12).to_bytes(8, "little") + b"s.",
    "a frame of 1 TB": b"\x80\x04\x95" + (10**12).to_bytes(8, "little") + b"}.",
}


def torch(pickled: bytes, *more: str):
    def write(path: Path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (("archive/data.pkl", pickled), ("archive/data/0", bytes(16)), *((name, b"") for name in more)):
                archive.writestr(name, content)

    return write


def repeated(path: Path):
    """10,000 tensors of the same 4 MB."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"J\0\0\x10\0tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0J\0\0\x10\0\x85K\x01\x85\x89}tR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + b"".join(text(str(i)) + tensor for i in range(10_000)) + b"u.")
        archive.writestr("archive/data/0", bytes(4 << 20))


WEIGHTS = {
    **{name: lambda path, content=content: path.write_bytes(content) for name, content in PICKLES.items()},
    **{f"{name}, in a zip": torch(content) for name, content in PICKLES.items()},
    "a name up the tree": torch(b"}.", "archive/../../run"),
    "the same numbers again": repeated,
    "1 GB": lambda path: sparse(path, b"\x80\x02"),
    "a directory of 1 GB": directory,
}


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def tar(*members: tuple[tarfile.TarInfo, bytes]):
    def write(path: Path):
        with tarfile.open(path, "w:gz") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    return write


def linked(path: Path):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("data_batch_1")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)


BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
TARS = {
    "a pickle": lambda path: path.write_bytes(PICKLE),
    "a batch that is a program": tar(*((name, PICKLE) for name in BATCHES)),
    "a batch of a memo of 10^9": tar(*((name, PICKLES["a memo of 10^9"]) for name in BATCHES)),
    "a name up the tree": tar(("../../data_batch_1", PICKLE)),
    "an absolute name": tar(("/tmp/data_batch_1", PICKLE)),
    "a link": linked,
    "a bomb": lambda path: path.write_bytes(deflated_zeros(member("data_batch_1", GIGABYTE))),
    "a bomb beside": lambda path: path.write_bytes(deflated_zeros(member("other", GIGABYTE))),
    "a member of 1 TB": lambda path: path.write_bytes(member("data_batch_1", 2**40)),
    "a name of 1 GB": lambda path: path.write_bytes(deflated_zeros(member("././@LongLink", GIGABYTE - 1, tarfile.GNUTYPE_LONGNAME))),
    "a pax header of 1 GB": lambda path: path.write_bytes(deflated_zeros(member("a", GIGABYTE - 1, tarfile.XHDTYPE))),
    "a million members": lambda path: path.write_bytes(gzip.compress(member("a", 0) * 100_000, 1)),
}


def png(path: Path):
    """30,000 x 30,000 white pixels, of which the file has a few."""
    chunk = lambda name, content: struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(3751 * 1000))) + chunk(b"IEND", b""))


IMAGES = {
    "a bomb": png,
    "a program in PostScript": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(run) (w) file closefile\n"),
    "a pickle": lambda path: path.write_bytes(PICKLE),
}
IDX = {
    "a bomb": lambda path: path.write_bytes(deflated_zeros(struct.pack(">4I", 0x803, 60_000, 28, 28))),
    "1 GB": lambda path: sparse(path, b"\x1f\x8b\x08\0\0\0\0\0\0\xff"),
    "a pickle": lambda path: path.write_bytes(PICKLE),
}


def beside(name: str, **others):
    """A function that puts the file as `name` into a folder, with others, and says where the folder is."""

    def put(path: Path) -> Path:
        path.rename(path.with_name(name))
        for other, content in others.items():
            place = path.with_name(other.replace("__", "."))
            place.write_bytes(content(path.with_name(name)) if callable(content) else content)
        return path.parent

    return put


ABOUT = json.dumps({"shape": [2, 2, 1], "scale": 1.0, "images": {"num_classes": 0}}).encode()
SHA256 = lambda file: hashlib.sha256(file.read_bytes() if file.stat().st_size < GIGABYTE else b"").hexdigest()
SAID = lambda file: json.dumps({"step": 1, "sha256": {"ema": SHA256(file)}}).encode()
LIKE = {"a": SimpleNamespace(shape=(4,), dtype=np.dtype("f4"), size=4)}
same = lambda name: beside(name) and (lambda path: path.rename(path.with_name(name)))


def readers():
    """(name, files, how they are laid out, the reader of what that gives); an import for each, as this is run in processes of their own."""
    from experiments import adapters, archives, arrays, cli, evaluate, folders, from_diffusers, inception, kept, runs, sources, statistics, weights

    def go_on(path):
        """Kept results that are damaged are computed again."""
        place = kept.Kept(path.parent / "stem")
        place.open({})
        path.rename(place.folder / "00000000.npz") if place.folder.mkdir() is None else None
        place.open({})
        raise ValueError(f"{len(place)} kept") if len(place) == 0 else AssertionError

    yield "data (npz)", NPZ, same("a.npz"), lambda path: sources.npz(str(path))
    yield "samples", NPZ, same("a.npz"), lambda path: evaluate.from_file(path, None)
    yield "statistics", NPZ, same("a.npz"), lambda path: (statistics.read(path), dict(statistics.Npz(path)))
    yield "fits", NPZ, same("a.npz"), lambda path: arrays.load(path, list(NAMES), "python -m experiments.fit")
    yield "kept results", NPZ, same("a.npz"), go_on
    others = {"y__npy": header((4,), "<i4") + bytes(16), "x_test__npy": header((0,)), "y_test__npy": header((0,), "<i4")}
    yield "latents (npy)", NPY, beside("x.npy", latents__json=ABOUT, **others), lambda path: sources.latents(str(path))
    yield "latents (json)", JSON, beside("latents.json"), lambda path: sources.latents(str(path))
    yield "config", JSON, beside("config.json"), lambda path: cli.load_config(str(path))
    yield "export.json", JSON, beside("export.json"), lambda path: weights.read(path, "ema", LIKE)
    yield "weights", TENSORS, beside("ema.safetensors", export__json=SAID), lambda path: weights.read(path, "ema", LIKE)
    yield "adapter", TENSORS, same("a.safetensors"), adapters.load
    yield "Inception (safetensors)", TENSORS, same("a.safetensors"), inception.load
    yield "diffusers", TENSORS, same("a.safetensors"), lambda path: from_diffusers.write(path, path.with_name("out"))
    yield "Inception (pickle)", WEIGHTS, same("a.pth"), inception.load
    yield "CIFAR (archive)", TARS, same("a.tar"), lambda path: archives.cifar(10, str(path))
    batches = dict.fromkeys(BATCHES[1:], b".")
    yield "CIFAR (folder)", {n: WEIGHTS[n] for n in (*PICKLES, "1 GB")}, beside("data_batch_1", **batches), lambda path: archives.cifar(10, str(path))
    yield "images", IMAGES, beside("a.png"), lambda path: folders.fitted(path / "a.png", 8)
    yield "Fashion-MNIST", IDX, beside("train-images-idx3-ubyte.gz"), lambda path: archives.fashion_mnist(str(path))
    yield "latents of a run", JSON, beside("latents.json"), lambda path: runs.same_latents(path, SimpleNamespace(about={"sha256": "", "scale": 1.0}))


def measured(path: Path, read) -> dict:
    """What a process says that reads a file: its error, its seconds of processor time, and the growth of its memory in MB."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.chdir(path if path.is_dir() else path.parent)
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        clock = time.process_time()
        try:
            read(path)
            error = "not refused"
        except (ValueError, FileNotFoundError) as refusal:
            error = str(refusal)
        except BaseException as other:
            error = f"not refused: {type(other).__name__}: {other}"
        seconds = time.process_time() - clock
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - rss
        os.write(theirs, json.dumps({"error": error[:2000], "seconds": seconds, "growth": growth / 1e6}).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else {"error": "not refused: killed", "seconds": 0.0, "growth": 0.0}


def harmed(path: Path):
    """What happens without care."""
    return np.load(path) if path.stat().st_size > GIGABYTE else np.load(path, allow_pickle=True)


if __name__ == "measure":  # run by the process that the test starts
    results, written = [], {}
    control = {name: NPY[name] for name in ("a header of 1 GB", "a pickle")}
    for index, (reader, files, put, read) in enumerate([*readers(), ("control", control, Path, harmed)]):
        for number, (name, write) in enumerate(files.items()):
            if (number - index) % SHARE and reader != "control":  # noqa: F821
                continue
            place = Path(FOLDER) / reader.replace(" ", "_") / str(number)  # noqa: F821
            place.mkdir(parents=True)
            if write not in written:
                written[write] = place.parent / f"{number}.file"
                write(written[write])
            os.link(written[write], place / "file")
            found = measured(put(place / "file"), read)
            results.append({"reader": reader, "file": name, "run": any(place.rglob("run")), **found})
    (Path(FOLDER) / "results.json").write_text(json.dumps(results))  # noqa: F821


def test_files_that_do_harm_are_refused(tmp_path, times, count):
    """Each file to each reader; in the short version a third of them."""
    share = times(3, 1)
    process = SERVER.Process(target=runpy.run_path, args=(str(HERE), {"FOLDER": str(tmp_path), "SHARE": share}, "measure"))
    process.start()
    process.join(300)
    *results, grown, run = json.loads((tmp_path / "results.json").read_text())
    assert grown["growth"] > 1000 and run["run"]  # the control: what NumPy and pickle do
    light = lambda r: r["seconds"] <= SECONDS and r["growth"] <= MEGABYTES and not r["run"]
    refused = lambda r: not any(words in r["error"] for words in ("not refused", "no such file", "\n"))
    good = [light(r) and refused(r) for r in results]
    for result, held in zip(results, good):
        if not held:
            print(result)
    most = lambda name: max(r[name] for r in results)
    also = f"none run, at most {most('seconds'):.2f} s and {most('growth'):.0f} MB"
    assert len(results) > 150 // share
    count("files that do harm x readers, refused", sum(good), len(results), also)
