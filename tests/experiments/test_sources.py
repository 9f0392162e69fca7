"""Data sets from files, in all the forms that people have them in, and the ways in which these are wrong."""

import io
import os
import pickle
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import archives, data, folders, sources

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    for module in (archives, folders, sources):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")


def cifar_files(classes, form):
    """The files of a tiny CIFAR and the images [5 x 2 or 10, 32, 32, 3] and labels in them."""
    images = RNG.integers(0, 256, (10, 32, 32, 3)).astype(np.uint8)
    labels = RNG.integers(0, classes, 10)
    rows = images.transpose(0, 3, 1, 2).reshape(10, 3072)
    parts = np.split(np.arange(10), 5) if classes == 10 else [np.arange(10)]
    files = {}
    for names, indices in ((archives.CIFAR_FILES[classes]["train"], parts), (archives.CIFAR_FILES[classes]["test"], parts[:1])):
        for name, i in zip(names, indices):
            if form == "binary":
                head = np.zeros((len(i), 1 if classes == 10 else 2), np.uint8)
                head[:, -1] = labels[i]
                files[name + ".bin"] = np.hstack([head, rows[i]]).tobytes()
            else:
                files[name] = pickle.dumps({b"data": rows[i], b"labels" if classes == 10 else b"fine_labels": labels[i].tolist()}, protocol=2)
    return files, images, labels, len(parts[0])


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar(tmp_path, monkeypatch, classes, form, packed):
    """Binary and python versions, packed and extracted, give the same images and labels."""
    files, images, labels, test = cifar_files(classes, form)
    monkeypatch.setattr(archives, "CIFAR_SIZES", {"train": 10, "test": test})
    folder = tmp_path / "files"
    folder.mkdir()
    if packed:
        with tarfile.open(folder / "mine.tar.gz", "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"cifar/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    path = str(folder / "mine.tar.gz" if packed else folder)
    dataset = data.load(ConfigDict({"name": f"cifar{classes}", "path": path}))
    np.testing.assert_array_equal(dataset.values["train"], images)
    np.testing.assert_array_equal(dataset.labels["train"], labels)
    np.testing.assert_array_equal(dataset.values["test"], images[:test])
    assert (dataset.num_classes, dataset.levels, dataset.shape) == (classes, 256, (32, 32, 3))


class Malice:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_bad_cifar(tmp_path, monkeypatch):
    """Code in a pickle is not run; wrong archives, sizes and places end in one line each."""
    files = cifar_files(10, "python")[0]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="10 images to train: expected 50000"):
        archives.cifar(10, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(Malice()))
    with pytest.raises(ValueError, match="data_batch_3 is no batch of CIFAR-10 .*system"):
        archives.cifar(10, str(tmp_path))
    assert not (tmp_path / "harmed").exists()
    for bad in (b"cnumpy\nndarray\n(I1\nS'O'\ntR.", b"c_codecs\nencode\n(Va\nVzlib\ntR.", b"\x80", pickle.dumps({b"data": np.zeros(3)})):
        (tmp_path / "data_batch_3").write_bytes(bad)
        with pytest.raises(ValueError, match="data_batch_3 is no batch of CIFAR-10"):
            archives.cifar(10, str(tmp_path))
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="no data_batch_3"):
        archives.cifar(10, str(tmp_path))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"half")
    with pytest.raises(ValueError, match="MD5 differs.*delete it"):
        archives.cifar(10, str(tmp_path))
    (tmp_path / "other.tar").write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be read as a tar archive"):
        archives.cifar(10, str(tmp_path / "other.tar"))
    monkeypatch.setattr(archives, "CIFAR_URL", "http://127.0.0.1:9/")
    with pytest.raises(FileNotFoundError, match="pass --config.data.path"):
        archives.cifar(10, "")


def image(file, color, size=(20, 12)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)


def test_folders_of_images(tmp_path):
    """Splits and classes by folders, any size and mode; resized once, and again when a file changes; read as a memory map."""
    for split, n in (("train", 3), ("val", 1)):
        for k, color in enumerate(((255, 0, 0), (0, 0, 255))):
            for i in range(n):
                image(tmp_path / "set" / split / f"class{k}" / f"{i}.png", color)
    config = ConfigDict({"name": "folder", "path": str(tmp_path / "set"), "size": 8, "levels": 256})
    dataset = data.load(config)
    assert dataset.shape == (8, 8, 3) and dataset.num_classes == 2 and isinstance(dataset.values["train"], np.memmap)
    assert sorted(dataset.labels["train"]) == [0, 0, 0, 1, 1, 1]
    colors = np.array([[255, 0, 0], [0, 0, 255]])[dataset.labels["test"]]
    np.testing.assert_array_equal(dataset.values["test"], np.broadcast_to(colors[:, None, None], (2, 8, 8, 3)))
    batch = next(data.batches(dataset, 4, 0))
    assert np.all(batch["value"][..., 0] == np.where(batch["label"] == 0, 255, 0)[:, None, None])
    image(tmp_path / "set" / "train" / "class0" / "0.png", (0, 255, 0))
    assert np.sum(np.all(folders.folder(str(tmp_path / "set"), {"size": 8})[0]["train"] == [0, 255, 0], (1, 2, 3))) == 1
    for i in range(60):
        image(tmp_path / "many" / f"class{i // 30}" / f"{i}.png", (i, 0, 0))
    labels = folders.folder(str(tmp_path / "many"), {"size": 4})[1]["train"]
    assert 5 < labels[:20].sum() < 15  # the first ones are of all classes
    gradient = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    Image.fromarray(gradient).save(tmp_path / "set" / "gray.png")
    small = folders.fitted(tmp_path / "set" / "gray.png", 16)
    np.testing.assert_allclose(small[..., 0], np.tile(gradient[0].reshape(16, 4).mean(1), (16, 1)), atol=1)  # boxes
    with pytest.raises(ValueError, match="gray.png is in no folder of a class"):
        (tmp_path / "set" / "gray.png").rename(tmp_path / "set" / "val" / "gray.png")
        folders.folder(str(tmp_path / "set"), {"size": 8})


def test_images_as_they_are_meant(tmp_path):
    """Upright by EXIF, white where transparent, 16-bit values by their high byte; a link to a folder is followed."""
    file = tmp_path / "one.png"
    Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)).save(file)
    np.testing.assert_array_equal(folders.fitted(file, 16)[..., 0], np.arange(256).reshape(16, 16))
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(file)
    assert np.all(folders.fitted(file, 4) == 255)
    turned = Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8).repeat(8, 0).repeat(8, 1))
    exif = turned.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned.save(file, exif=exif)
    np.testing.assert_array_equal(folders.fitted(file, 16)[0, :, 0], np.repeat([255, 0], 8))
    Image.new("L", (300, 2)).save(file)
    with pytest.raises(ValueError, match="too narrow"):
        folders.fitted(file, 2)
    for i in range(60):
        image(tmp_path / "elsewhere" / f"{i}.png", (i, 0, 0), (4, 4))
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    image(tmp_path / "set" / "a" / "x.png", (0, 0, 0), (4, 4))
    values, _, classes = folders.folder(str(tmp_path / "set"), {"size": 4})
    assert len(classes) == 2 and sum(len(v) for v in values.values()) == 61


def test_a_flat_folder_is_split_by_name(tmp_path):
    for i in range(60):
        image(tmp_path / f"{i}.png", (i, i, i), (4, 4))
    values, labels, classes = folders.folder(str(tmp_path), {"size": 4})
    assert classes == () and sum(len(v) for v in values.values()) == 60 and 0 < len(values["test"]) < 15
    image(tmp_path / "new.png", (99, 0, 0), (4, 4))
    again = folders.folder(str(tmp_path), {"size": 4})[0]
    old = lambda v: sorted(x[0, 0, 0] for x in v if x[0, 0, 1])
    assert old(again["test"]) == old(values["test"])  # what is held out stays so
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.jpg cannot be read as an image"):
        folders.folder(str(tmp_path), {"size": 4})
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    with pytest.raises(ValueError, match="config.data.size = 0"):
        folders.folder(str(tmp_path), {"size": 0})
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        folders.folder(str(tmp_path / "none"), {"size": 4})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images to train"):
        folders.folder(str(tmp_path / "empty"), {"size": 4})


def test_npz(tmp_path):
    """uint8 arrays are images of 256 levels; floats, such as latents, are scaled to unit variance; objects are refused."""
    file = tmp_path / "mine.npz"
    images, labels = RNG.integers(0, 256, (40, 4, 4, 3)).astype(np.uint8), np.arange(40) % 7
    np.savez(file, arr_0=images, arr_1=labels)
    values, found, classes = sources.npz(str(file))
    assert classes == (*range(7),) and len(values["train"]) == 38
    np.testing.assert_array_equal(values["test"], images[[19, 39]])
    np.testing.assert_array_equal(found["test"], labels[[19, 39]])
    latents = RNG.normal(3.0, 5.0, (50, 2, 2, 4))
    np.savez(file, x=latents, x_test=latents[:7])
    dataset = data.load(ConfigDict({"name": "npz", "path": str(file)}))
    x = dataset.to_x(jax.random.split(jax.random.key(0), 50), dataset.values["train"])
    assert dataset.levels == 0 and dataset.num_classes == 0 and len(dataset.values["test"]) == 7
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-4)
    np.savez(file, x=np.array([None, "text"], object))
    with pytest.raises(ValueError, match="cannot be read as an .npz file of arrays"):
        sources.npz(str(file))
    for arrays, words in (
        (dict(x=images, x_test=images[:3, :2]), "3 examples"),
        (dict(x=images, x_test=images[:3] / 255.0), "of float64 to test"),
        (dict(x=images, y=labels[:9]), "9 labels of 40 examples"),
        (dict(x=images, y=labels - 1), "expected 38 integers from 0"),
        (dict(x=images, x_test=images, y_test=labels), "has y_test without y"),
        (dict(x=np.full((40, 2), np.nan)), r"x\[0\] and 39 more of 40 examples has the value nan"),
        (dict(x=images[:5]), "5 examples: expected at least 20"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=words):
            sources.npz(str(file))
    for content in (b"", b"nothing"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as an .npz"):
            sources.npz(str(file))
    np.save(tmp_path / "mine.npy", images)
    with pytest.raises(ValueError, match="cannot be read as an .npz"):
        sources.npz(str(tmp_path / "mine.npy"))
    np.savez(file, images=np.full((3, 2, 2, 1), "text"))
    with pytest.raises(ValueError, match="has the arrays images"):
        sources.npz(str(file))


def test_flips():
    """A coin of each example's own mirrors it (10,000 coins: within 4 standard errors of a half); data that are no images are refused."""
    dataset = data.load(ConfigDict({"name": "digits", "flip": True}))
    values = jnp.broadcast_to(jnp.array([0.0, 1.0])[None, None, :, None], (10_000, 1, 2, 1))
    keys = jax.random.split(jax.random.key(0), 10_000)
    flipped = dataset.mirror(keys, values)
    assert abs(float(flipped[:, 0, 0, 0].mean()) - 0.5) < 4 * 0.5 / 100
    np.testing.assert_array_equal(flipped.sum(2), 1)
    np.testing.assert_array_equal(dataset.mirror(keys[5:9], values[5:9]), flipped[5:9])
    with pytest.raises(ValueError, match="config.data.flip mirrors images"):
        data.load(ConfigDict({"name": "moons", "flip": True}))


def saved(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def test_hidden_folders_and_files_are_no_images(tmp_path):
    """What notebooks, macOS and file servers leave is no class and no image, wherever it is."""
    for split in ("train", "test"):
        for k in range(2):
            for i in range(3):
                saved(tmp_path / split / f"class{k}" / f"{i}.png", RNG.integers(0, 256, (4, 4), np.uint8))
            for junk in (".ipynb_checkpoints/0.png", f"class{k}/.ipynb_checkpoints/0.png", f"class{k}/._0.png", "__MACOSX/0.png"):
                saved(tmp_path / split / junk, RNG.integers(0, 256, (4, 4), np.uint8))
        (tmp_path / split / ".DS_Store").write_bytes(b"x")
    values, labels, classes = folders.folder(str(tmp_path), {"size": 4})
    assert classes == ("class0", "class1") and len(values["train"]) == len(values["test"]) == 6
    assert sorted(labels["train"]) == [0, 0, 0, 1, 1, 1]


def test_images_keep_their_channels_and_range(tmp_path):
    """Grey is one channel, 12 bits in 16 are 4096 levels, floats are floats, binary is two levels; what no mode holds is refused."""
    load = lambda name, **options: data.load(ConfigDict({"name": "folder", "path": str(tmp_path / name), "size": 8, **options}))
    grey, deep = RNG.integers(0, 256, (8, 8), np.uint8), RNG.integers(0, 4096, (8, 8)).astype(np.uint16)
    floats = RNG.normal(1e3, 2e3, (8, 8)).astype(np.float32)
    bits = RNG.integers(0, 2, (8, 8)).astype(np.uint8) * 255
    for split in ("train", "test"):
        for name, array, end in (("grey", grey, "png"), ("deep", deep, "png"), ("floats", floats, "tif"), ("bits", bits, "png")):
            saved(tmp_path / name / split / f"0.{end}", array)
            saved(tmp_path / name / split / f"1.{end}", array[::-1])
    for name, array, levels in (("grey", grey, 256), ("deep", deep, 4096), ("floats", floats, 0), ("bits", bits, 2)):
        found = load(name)
        assert found.shape == (8, 8, 1) and found.levels == levels
        raw = found.raw(found.values["test"])[..., 0]
        assert any(np.allclose(raw[0], a, rtol=1e-6, atol=1e-3) for a in (array, array[::-1])), name
    assert load("grey", mode="RGB").shape == (8, 8, 3)
    assert load("deep", mode="L", levels=256).values["train"].max() == deep.max() >> 8  # as before, when asked for
    saved(tmp_path / "grey" / "train" / "2.png", RNG.integers(0, 256, (8, 8, 3), np.uint8))
    data._images.cache_clear()
    assert load("grey").shape == (8, 8, 3)  # of both kinds
    saved(tmp_path / "grey" / "train" / "3.png", deep)
    saved(tmp_path / "floats" / "train" / "2.tif", np.full((8, 8), np.nan, np.float32))
    data._images.cache_clear()
    with pytest.raises(ValueError, match="whose ranges differ.*mode = L or RGB"):
        load("grey")
    with pytest.raises(ValueError, match="2.tif cannot be read as an image .*not finite"):
        load("floats")
    with pytest.raises(ValueError, match="mode = 'grey': expected"):
        load("deep", mode="grey")


def test_images_are_cropped_padded_or_kept(tmp_path):
    """Of 8 x 16 pixels: the middle square, a square with black above and below, or all of them."""
    wide = np.tile(np.arange(100, 116, dtype=np.uint8), (8, 1))
    saved(tmp_path / "a.png", wide)
    np.testing.assert_array_equal(folders.fitted(tmp_path / "a.png", 8, "L", "crop")[..., 0], wide[:, 4:12])
    np.testing.assert_array_equal(folders.fitted(tmp_path / "a.png", 16, "L", "pad")[..., 0], np.pad(wide, ((4, 4), (0, 0))))
    for size in (0, 8):
        np.testing.assert_array_equal(folders.fitted(tmp_path / "a.png", size, "L", "keep")[..., 0], wide)
    assert folders.fitted(tmp_path / "a.png", 4, "L", "keep").shape == (4, 8, 1) and folders.fitted(tmp_path / "a.png", 8, "L", "pad").shape == (
        8,
        8,
        1,
    )
    for split in ("train", "test"):
        saved(tmp_path / "set" / split / "a.png", wide)
        saved(tmp_path / "set" / split / "b.png", wide[:, ::-1])
    assert folders.folder(str(tmp_path / "set"), {"fit": "keep"})[0]["train"].shape == (2, 8, 16, 1)
    saved(tmp_path / "set" / "train" / "c.png", wide.T)
    with pytest.raises(ValueError, match="expected one shape, or config.data.fit = crop or pad"):
        folders.folder(str(tmp_path / "set"), {"fit": "keep"})
    with pytest.raises(ValueError, match="fit = 'stretch'"):
        folders.folder(str(tmp_path / "set"), {"size": 8, "fit": "stretch"})
