"""Any folder of images, as a `sources.Source`: found, brought to one shape, and resized once.

Channels and range are those of the files: grey images have one channel, and 16-bit images and images of floats keep their
numbers. config.data.mode = "L" or "RGB" makes 8-bit images of all of them, of 16-bit images by their high byte.
"""

import hashlib
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from experiments.sources import CACHE, HELD_OUT, Source, keep
from experiments.untrusted import npy

# whatever the file's name: PIL runs Ghostscript for some others
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
PIXELS = Image.MAX_IMAGE_PIXELS
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
SYSTEM = ("__MACOSX", "Thumbs.db", "@eaDir")  # what systems leave, besides names that begin with a dot
# what images of a folder are read as -> channels and type; "" takes the first that holds all of them
MODES = {"L": (1, np.uint8), "RGB": (3, np.uint8), "I;16": (1, np.uint16), "F": (1, np.float32)}
FITS = ("crop", "pad", "keep")


def native(image: Image.Image) -> str:
    """The mode, of `MODES`, that holds an image as it is in its file. Raises ValueError for colours of 16 bits, of which PIL reads 8."""
    if len(image.getbands()) > 1 and any("16" in str(tile[3]) for tile in image.tile):
        raise ValueError("its channels have 16 bits, of which only the high byte can be read; expected config.data.mode = RGB or L, which takes that")
    if image.mode.startswith("I"):
        return "I;16"
    if image.mode in ("1", "L", "F"):
        return "F" if image.mode == "F" else "L"
    if image.mode in ("LA", "La"):
        return "L"
    if image.mode == "P":
        colors = np.asarray(image.convert("RGB"))
        return "L" if (colors == colors[..., :1]).all() else "RGB"
    return "RGB"


def mode_of(file: Path) -> str:
    """`native` of a file."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_size(image)
            return native(image)
    except Exception as error:  # a broken file raises anything
        raise ValueError(f"{file} cannot be read as an image ({error}): mend or remove it") from None


def check_size(image: Image.Image) -> None:
    if image.width * image.height > PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {PIXELS:,}")


def opened(file: Path, mode: str) -> Image.Image:
    """An image, upright as its EXIF data say, on white where it is transparent; one channel of 16 bits or floats as PIL's "F",
    in which they are resized without being rounded."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_size(image)
            image = ImageOps.exif_transpose(image)
            if mode in ("I;16", "F"):
                deep = np.asarray(image, np.float32)
                if not np.isfinite(deep).all():
                    raise ValueError("it has pixels that are not finite")
                if mode == "I;16" and (deep.min() < 0 or deep.max() > 65535):
                    raise ValueError(f"it has pixels from {deep.min():g} to {deep.max():g}: expected 0 to 65535; config.data.mode = F takes others")
                return Image.fromarray(deep)
            if image.mode == "F":
                raise ValueError(f"its pixels are floats, which {mode} does not hold; expected config.data.mode = F, or ''")
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert(mode)
    except Exception as error:  # a broken file raises anything
        raise ValueError(f"{file} cannot be read as an image ({error}): mend or remove it") from None


def fitted(file: Path, size: int, mode: str = "RGB", fit: str = "crop") -> np.ndarray:
    """An image as an array [h, w, c] of `MODES`: halved by boxes while it is twice too large, then resized bicubically (ADM).

    fit: "crop" makes the shorter side `size` long and cuts out the centre, "pad" makes the longer side `size` long and
    adds black on both sides, "keep" makes the shorter side `size` long and keeps the shape; of size 0, "keep" resizes nothing."""
    image = opened(file, mode)
    if fit == "crop" and max(image.size) > 100 * min(image.size):
        raise ValueError(f"{file} has {image.width}x{image.height} pixels: too narrow for a square; remove it")
    if size:
        side = max if fit == "pad" else min
        while side(image.size) >= 2 * size and min(image.size) > 1:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = size / side(image.size)
        shape = tuple(max(1, round(length * scale)) for length in image.size)
        image = image.resize(shape, Image.Resampling.BICUBIC)
    if fit != "keep":
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))  # black beyond the image
    array, (channels, dtype) = np.asarray(image), MODES[mode]
    if dtype == np.uint16:
        array = np.round(array).clip(0, 65535)
    return array.reshape(*array.shape[:2], channels).astype(dtype)


def stamp(root: Path, files: list[Path], *options) -> Path:
    """Where what is made of these files, as they are now, is in the cache, without its ending."""
    each = "".join(f"{file.relative_to(root)} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)
    of = " ".join([str(root.resolve()), *map(str, options), each])
    return CACHE / "images" / hashlib.sha256(of.encode()).hexdigest()[:24]


def _prepared(root: Path, files: list[Path], size: int, mode: str, fit: str) -> np.ndarray:
    """All files [n, h, w, c], resized once and then read from the cache, where they need not fit in memory."""
    cached = stamp(root, files, size, mode, fit).with_suffix(".npy")
    if not cached.exists():
        first = fitted(files[0], size, mode, fit)
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=cached.parent, suffix=".tmp")) / cached.name
        made = np.lib.format.open_memmap(temporary, "w+", first.dtype, (len(files), *first.shape))
        try:
            with ThreadPoolExecutor() as pool:
                for i, image in enumerate(pool.map(lambda file: fitted(file, size, mode, fit), files)):
                    if image.shape != first.shape:
                        raise ValueError(
                            f"{files[i]} has the shape {image.shape[:2]} and {files[0]} {first.shape[:2]}: expected one shape, "
                            "or config.data.fit = crop or pad with config.data.size"
                        )
                    made[i] = image
                    if (i + 1) % 10_000 == 0:
                        print(f"resized {i + 1}/{len(files)} images", flush=True)
            made.flush()
            temporary.rename(cached)
        finally:
            shutil.rmtree(temporary.parent)
    return npy(cached)


def common_mode(root: Path, files: list[Path]) -> str:
    """The mode that holds all images as they are, kept in the cache. Raises ValueError if there is none, as for 8-bit
    colours and 16-bit greys."""
    cached = stamp(root, files).with_suffix(".mode")
    if cached.is_file() and cached.read_text() in MODES:
        return cached.read_text()
    mode = _common_mode(files)
    keep(cached, mode.encode())
    return mode


def _common_mode(files: list[Path]) -> str:
    with ThreadPoolExecutor() as pool:
        found = dict(zip(pool.map(mode_of, files), files))
    modes = set(found)
    if len(modes) == 1:
        return modes.pop()
    if modes == {"L", "RGB"}:
        return "RGB"
    pairs = ", ".join(f"{mode} ({file})" for mode, file in found.items())
    raise ValueError(f"the images are of {pairs}, whose ranges differ: expected one of them, or config.data.mode = L or RGB for 8 bits")


def visible(root: Path) -> list[Path]:
    """The images below a folder, without hidden files and folders and without what systems leave."""
    shown = lambda name: not name.startswith(".") and name not in SYSTEM
    found = []
    for place, inner, names in os.walk(root, followlinks=True):
        inner[:] = filter(shown, inner)
        found += [Path(place) / name for name in names if shown(name) and Path(name).suffix.lower() in ENDINGS]
    return sorted(found)


def folder(path: str, options: dict) -> Source:
    """Any folder of images. Its subfolders train and val (or validation, test) are the splits; without them one image of `HELD_OUT`, chosen by its
    name, is for testing. The folders below are the classes, if there are any (those of ImageNet's validation images have to be made).

    options: "size", the side in pixels; "mode", one of `MODES` or "" for that of the files; "fit", one of `FITS`."""
    root, size, mode, fit = Path(path), options.get("size", 0), options.get("mode", ""), options.get("fit", "crop")
    digest = lambda f: hashlib.sha256(str(f.relative_to(path)).encode()).hexdigest()
    if not path or not root.is_dir():
        raise FileNotFoundError(f"config.data.path = '{path}': expected a folder of images")
    if fit not in FITS or mode not in ("", *MODES):
        raise ValueError(f"config.data.fit = '{fit}', mode = '{mode}': expected {', '.join(FITS)}, and '' or {', '.join(MODES)}")
    if size < (fit != "keep"):
        raise ValueError(f"config.data.size = {size}: expected the side of the images in pixels, e.g. --config.data.size=64")
    every = visible(root)
    splits = {"train": root / "train", "test": next((root / name for name in ("val", "validation", "test") if (root / name).is_dir()), root / "val")}
    if all(part.is_dir() for part in splits.values()):
        files = {split: [f for f in every if part in f.parents] for split, part in splits.items()}
    else:
        chosen = lambda f: int(digest(f), 16) % HELD_OUT == 0
        root = splits["train"] if splits["train"].is_dir() else root
        splits = {"train": root, "test": root}
        every = [f for f in every if root in f.parents]
        above = lambda f: f.relative_to(root).parts[:-1][:1]  # the folder of its class
        trained = {above(f) for f in every if not chosen(f)}  # a class that would be held out as a whole is not
        files = {"train": [], "test": []}
        for f in every:
            files["test" if chosen(f) and above(f) in trained else "train"].append(f)
    files = {split: sorted(found, key=digest) for split, found in files.items()}  # the first of them are of all classes
    for split, found in files.items():
        if not found:
            raise ValueError(
                f"{path} has no images to {split} (of {len(every)} in all): expected {', '.join(ENDINGS)}, in train/ and test/, or "
                f"some {5 * HELD_OUT} of them, as about one of {HELD_OUT} is held out for testing by its name"
            )
    parts = {split: [f.relative_to(splits[split]).parts for f in found] for split, found in files.items()}
    lonely = [splits[split].joinpath(*p) for split, found in parts.items() for p in found if len(p) == 1]
    labelled = not lonely
    if lonely and len(lonely) < len(every):
        raise ValueError(
            f"{lonely[0]} is in no folder of a class, others of the {len(every)} images are: expected folders of classes in each split, or none"
        )
    names = sorted({p[0] for found in parts.values() for p in found}) if labelled else []
    untrained = sorted(set(names) - {p[0] for p in parts["train"]})
    if untrained:
        raise ValueError(f"{path} has the class {untrained[0]} in its test images alone: expected training images of it, or none")
    number = {name: i for i, name in enumerate(names)}
    labels = {split: np.array([number[p[0]] if labelled else 0 for p in found], np.int32) for split, found in parts.items()}
    mode = mode or common_mode(root, [f for found in files.values() for f in found])
    return {split: _prepared(root, found, size, mode, fit) for split, found in files.items()}, labels, tuple(names)
