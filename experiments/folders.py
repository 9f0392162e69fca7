"""Any folder of images, as a `sources.Source`: found, made square, and resized once."""

import hashlib
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from experiments.sources import CACHE, HELD_OUT, Source
from experiments.untrusted import npy

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
