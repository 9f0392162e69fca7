r"""From a user's numbers u to the values v that everything is computed with: u = origin + step * v.

Continuous data are centred (and, standardised coordinate by coordinate, divided) in float64 before they
become float32, so that an offset of 1e7 costs no digits. Integers become the numbers of their levels:
{0, 255} are the levels 0 and 1. The density of u is that of v divided by the product of the steps.
What was found is kept with a run (`Dataset.facts`), which reads other files in the same way.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

import numpy as np

STANDARDIZE = ("", "coordinate", "one", "none")  # the choices of config.data.standardize
LARGEST_COUNT = 2**16  # levels of integers
WHOLE_TYPE = -1  # of config.data.levels: all the levels that the type of the integers has
BLOCK = 1 << 22  # numbers that are converted at once


@dataclass(frozen=True, eq=False)
class Units:
    """u = origin + step * v. origin, step: numbers, or arrays of the shape of an example, float64.
    dtype: the type of u in files that are written; empty for the type of v."""

    origin: float | np.ndarray = 0.0
    step: float | np.ndarray = 1.0
    dtype: str = ""

    def raw(self, values) -> np.ndarray:
        """u of values [..., *shape]."""
        if self.trivial:
            return np.asarray(values)
        raw = np.asarray(values, np.float64) * self.step + self.origin
        return raw.astype(self.dtype or values.dtype)

    @property
    def trivial(self) -> bool:
        """Whether u is v."""
        return not self.dtype and np.all(self.origin == 0) and np.all(self.step == 1)

    def log_volume(self, dim: int) -> float:
        """log |du/dv| of examples of `dim` numbers."""
        return float(np.log(np.broadcast_to(self.step, dim) if np.ndim(self.step) == 0 else self.step).sum())

    @property
    def facts(self) -> dict:
        """As JSON has them."""
        return {"origin": np.asarray(self.origin).tolist(), "step": np.asarray(self.step).tolist(), "dtype": self.dtype}


def of_facts(facts: dict | None, shape: tuple[int, ...]) -> Units:
    """The units of `Units.facts`, from a file. Raises ValueError, KeyError or TypeError for others."""
    if facts is None:
        return Units()
    origin, step = (np.asarray(facts[name], np.float64) for name in ("origin", "step"))
    dtype = np.dtype(facts["dtype"]).name if facts["dtype"] else ""
    if not all(a.shape in ((), tuple(shape)) and np.isfinite(a).all() for a in (origin, step)):
        raise ValueError(f"units of shape {origin.shape} and {step.shape}: expected finite {tuple(shape)}")
    if not (step > 0).all() or (dtype and np.dtype(dtype).kind not in "biuf"):
        raise ValueError(f"units with a step of {step.min()} and the type {dtype}: expected above 0, and numbers")
    return Units(*(float(a) if a.ndim == 0 else a for a in (origin, step)), dtype)


class Converted:
    """The values v of numbers u that stay where they are, in a file or mapped to memory: an array as far as
    indices along the first axis go.

    levels: of integers, 0 for continuous data. Raises ValueError, when it is read, for an integer that is not
    one of the levels, and for a number too large for float32."""

    def __init__(self, raw, units: Units, levels: int):
        self.raw, self.units, self.levels = raw, units, levels
        self.shape, self.dtype = raw.shape, np.dtype(level_type(levels) if levels else np.float32)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index) -> np.ndarray:
        return convert(self.raw[index], self.units, self.levels)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


def level_type(levels: int) -> str:
    """The type of the numbers of so many levels."""
    return "uint8" if levels <= 256 else "uint16"


def convert(raw: np.ndarray, units: Units, levels: int) -> np.ndarray:
    """v of u, [..., *shape]. Raises what `Converted` raises."""
    if not levels:
        values = ((np.asarray(raw, np.float64) - units.origin) / units.step).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("the data have numbers too large for float32: expected config.data.standardize = one or coordinate")
        return values
    origin, step = int(units.origin), int(units.step)
    if (origin, step, levels, raw.dtype) == (0, 1, 256, np.uint8):
        return raw
    distance = np.asarray(raw).astype(np.int64) - origin
    numbers = distance // step
    wrong = (distance % step != 0) | (numbers < 0) | (numbers >= levels)
    if wrong.any():
        found = np.asarray(raw)[wrong].ravel()[0]
        raise ValueError(
            f"the data have the value {found}, which is none of the {described(units, levels)}: expected these, or "
            "another config.data.levels (0 finds them) in a new run"
        )
    return numbers.astype(level_type(levels))


def values_of(raw, units: Units, levels: int):
    """v of u [n, *shape]: converted block by block where u is in memory, and otherwise as it is read."""
    if levels == 256 and raw.dtype == np.uint8 and units.origin == 0 and units.step == 1:
        return raw
    if type(raw) is not np.ndarray:
        return Converted(raw, units, levels)
    values = np.empty(raw.shape, level_type(levels) if levels else np.float32)
    rows = max(1, BLOCK // max(1, raw[0].size))
    for start in range(0, len(raw), rows):
        values[start : start + rows] = convert(raw[start : start + rows], units, levels)
    return values


def described(units: Units, levels: int) -> str:
    """The levels in words: "2 levels, 0 and 255", "17 levels, 0 to 16", "4 levels, 0, 85, ... 255"."""
    first, step = int(units.origin), int(units.step)
    last = first + (levels - 1) * step
    if levels == 2:
        return f"2 levels, {first} and {last}"
    return f"{levels} levels, {first}{'' if step == 1 else f', {first + step}, ...'} to {last}"


# --- what is found of data ------------------------------------------------------------------------------


def blocks(*splits) -> Iterable[np.ndarray]:
    """The examples of splits in blocks that fit in memory."""
    for raw in splits:
        rows = max(1, BLOCK // max(1, int(np.prod(raw.shape[1:]))))
        for start in range(0, len(raw), rows):
            yield np.asarray(raw[start : start + rows])


def distinct(part: np.ndarray) -> np.ndarray:
    """The different numbers of an array of integers, sorted, int64."""
    if part.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(part.ravel(), minlength=1))
    return np.unique(part).astype(np.int64)


def find_levels(splits: list, declared: int, where: str) -> tuple[Units, int]:
    """The levels of integers [n, ...] of all splits. declared: 0 finds them; N says that they are 0 to N - 1;
    `WHOLE_TYPE`, that they are all of their type.

    The step is the greatest common divisor of all differences: {0, 255} are two levels and {0, 85, 255} are four.
    Of step 1 they begin at 0, as far as none is negative, and more than 128 are counted up to the next power of
    two, since not all levels need occur in the data. Raises ValueError for numbers that are all the same, and
    for more than `LARGEST_COUNT` levels."""
    dtype = splits[0].dtype
    if declared == WHOLE_TYPE:
        count = 2 if dtype == np.bool_ else int(np.iinfo(dtype).max) + 1
        if count > LARGEST_COUNT or dtype.kind == "i":
            raise ValueError(f"config.data.levels = {WHOLE_TYPE} of {dtype}: expected bool, uint8 or uint16; 0 finds the levels")
        return of_integers(0, 1, count, dtype)
    if declared:
        if not 2 <= declared <= LARGEST_COUNT:
            raise ValueError(f"config.data.levels = {declared}: expected 2 to {LARGEST_COUNT}, {WHOLE_TYPE} for all of the type, or 0")
        return of_integers(0, 1, declared, dtype)
    first = low = high = None
    step = 0
    for part in blocks(*splits):
        found = distinct(part.view(np.uint8) if part.dtype == np.bool_ else part)
        first, low, high = (found[0], found[0], found[-1]) if first is None else (first, min(low, found[0]), max(high, found[-1]))
        step = gcd(step, int(np.gcd.reduce(found - first)))
        if dtype == np.uint8 and step == 1 and high >= 128:
            return of_integers(0, 1, 256, dtype)
    low, high = int(low), int(high)
    if not step:
        raise ValueError(f"{where} has the value {low} everywhere: expected data that vary")
    if high - low == step:
        return of_integers(low, step, 2, dtype)
    origin = 0 if low >= 0 and low % step == 0 else low
    count = (high - origin) // step + 1
    whole = 1 << (count - 1).bit_length()
    largest = 1 if dtype == np.bool_ else int(np.iinfo(dtype).max)
    if count > 128 and origin + (whole - 1) * step <= largest:
        count = whole
    if count > LARGEST_COUNT:
        raise ValueError(
            f"{where} has integers from {low} to {high} in steps of {step}: expected at most {LARGEST_COUNT} levels, "
            "or floats (x.astype(float)), whose density is continuous"
        )
    return of_integers(origin, step, count, dtype)


def of_integers(origin: int, step: int, count: int, dtype: np.dtype) -> tuple[Units, int]:
    """The units of `count` levels of integers of this type, and their count."""
    return Units(float(origin), float(step), "" if dtype.name == level_type(count) else dtype.name), count


def find_units(train, standardize: str, vectors: bool, where: str) -> tuple[Units, float]:
    """The units of continuous training data [n, *shape], and the scale of x = v / scale.

    standardize: "coordinate" subtracts the mean of each coordinate and divides by its standard deviation, "one"
    uses one mean and one deviation for all, "none" neither; "" is coordinate for `vectors`, and else one.
    Raises ValueError for a constant coordinate, and for numbers that have lost their digits already."""
    if standardize not in STANDARDIZE:
        raise ValueError(f"config.data.standardize = '{standardize}': expected coordinate, one, none, or '' for the default")
    mode = standardize or ("coordinate" if vectors else "one")
    dtype = np.result_type(train.dtype, np.float32).name
    if len(train) < 2:
        raise ValueError(f"{where} has 1 example to train: expected at least 2, for a standard deviation")
    some = np.asarray(train[:: max(1, len(train) // 10_000)], np.float64)  # at most 20,000
    if mode == "coordinate":
        mean, std = moments(train)
        if (still := np.argwhere(std <= 1e-14 * np.abs(mean))).size:
            at, more = ", ".join(map(str, still[0])), f" and {len(still) - 1} more" * (len(still) > 1)
            raise ValueError(
                f"{where}: coordinate {at}{more} is {mean[tuple(still[0])]:.6g} in every training example: a density needs "
                "coordinates that vary; remove it, or pass --config.data.standardize=one"
            )
    else:
        mean, std = float(some.mean()), float(some.std())
        if not std > 0:
            raise ValueError(f"{where} has the value {mean:.6g} everywhere: expected data that vary")
    if not np.isfinite(std).all():
        raise ValueError(f"{where} has numbers up to {np.abs(some).max():.3g}, whose squares are no numbers: expected smaller ones")
    ends = np.abs(some).max(0) if mode == "coordinate" else np.abs(some).max()
    kind = np.float32 if mode == "none" and train.dtype.itemsize > 4 else train.dtype.type
    apart = np.spacing(ends.astype(kind)).astype(np.float64) / std
    if np.max(apart) > 0.1:
        worst = ends.ravel()[np.argmax(apart)]
        way = "subtract the offset in float64 before the file is written"
        raise ValueError(
            f"{where}: {np.dtype(kind).name} numbers near {worst:.6g} are {np.max(apart):.2g} standard deviations apart, too "
            f"coarse for a density: {'expected config.data.standardize = one' if mode == 'none' else way}"
        )
    if mode == "none":
        return Units(0.0, 1.0, dtype), 1.0
    return (Units(mean, std, dtype), 1.0) if mode == "coordinate" else (Units(mean, 1.0, dtype), std)


@np.errstate(over="ignore", invalid="ignore")
def moments(train) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each coordinate over the examples [n, *shape], float64, in two passes."""
    mean = sum(np.sum(part, 0, np.float64) for part in blocks(train)) / len(train)
    square = sum(np.sum((part.astype(np.float64) - mean) ** 2, 0) for part in blocks(train)) / len(train)
    return mean, np.sqrt(square)


def find_classes(labels: dict[str, np.ndarray], declared: int, where: str) -> tuple:
    """The integers that labels [n] of each split are, in order: class k is the k-th of them. declared: 0 finds
    them in the training data; N says that they are 0 to N - 1.

    Raises ValueError for a label of a test example that no training example has, and beyond `declared`."""
    found = {split: np.unique(part) for split, part in labels.items()}
    if declared < 0:
        raise ValueError(f"config.data.classes = {declared}: expected the number of classes, or 0 to find them")
    known = np.arange(declared) if declared else found["train"]
    for split, part in found.items():
        if (other := np.setdiff1d(part, known)).size:
            expected = f"0 to {declared - 1}, of config.data.classes = {declared}" if declared else "those of the training data"
            raise ValueError(f"{where} has the label {other[0]} to {split}: expected {expected}")
    return tuple(known.tolist())
