"""Every option has a range, and a value outside of it is refused before anything is written."""

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from small import config_of, save_random, small_config

from configs import default
from experiments import cli, ranges
from experiments.train import train


def altered(config, name: str, value):
    """`config` with an option of any type."""
    *groups, option = name.split(".")
    part = config
    for group in groups:
        part = part[group]
    with part.unlocked(), part.ignore_type():
        part[option] = value
    return config


def values_outside(allowed) -> list:
    """Values that a range refuses: another type, what is not finite, and the ends that are not allowed or numbers just beyond them."""
    if isinstance(allowed, ranges.Several):
        return [3.5, (np.nan,) * (allowed.length or 1), *([(1.0,)] if allowed.length == 2 else [])]
    if not isinstance(allowed, ranges.Number):
        return [7, "?" if isinstance(allowed, ranges.Choice) else 0.5, None]
    bad = [np.nan, np.inf, -np.inf, "1", None, True]
    step = 1 if allowed.whole else 1e-3
    bad += [allowed.low if allowed.open_low else allowed.low - step] if allowed.low > -np.inf else []
    bad += [allowed.high if allowed.open_high else allowed.high + step] if allowed.high < np.inf else []
    return bad + [2.5] * allowed.whole


def test_every_option_has_a_range():
    """A new key of configs/default.py without a range fails here: put it into `ranges.RANGES`."""
    assert sorted(ranges.RANGES) == sorted(cli.flat(default.get_config()))
    ranges.check(default.get_config())


@pytest.mark.parametrize("name", ranges.RANGES)
def test_values_outside_of_a_range(name):
    for value in values_outside(ranges.RANGES[name]):
        if value is None and name.startswith(ranges.MAY_BE_NONE):
            continue
        with pytest.raises(ValueError, match=f"config.{name} = .*: expected"):
            ranges.check(unflatten_dict({name: value}, sep="."))


def test_a_misspelt_option_is_no_option():
    """A Python config may add a key, which nothing would read; a path's or a network's own options are checked where it is made."""
    config = default.get_config()
    config.optim.learning_rat = 1e-4
    with pytest.raises(ValueError, match="config.optim has no option 'learning_rat': did you mean learning_rate"):
        ranges.check(config)
    ranges.check(altered(default.get_config(), "model.of_a_new_network", 3.0))


@pytest.mark.parametrize(
    "name, value",
    [
        ("optim.clip", -1.0),
        ("optim.learning_rate", -1e-3),
        ("optim.learning_rate", float("nan")),
        ("optim.warmup", -1),
        ("optim.decay", -1),
        ("optim.ema", 1.0),
        ("optim.ema", -0.1),
        ("optim.ema_std", 0.4),
        ("optim.beta1", 1.0),
        ("objective.sigma_data", 0.0),
        ("objective.time.name", "unifrom"),
        ("objective.weighting", "snr"),
        ("objective.time.name", "steps"),  # of a chain, and the path is continuous
        ("seed", -1),
    ],
)
def test_nothing_is_written_for_a_wrong_value(name, value, tmp_path):
    """What failed while the first step was traced, or never, fails before there is a folder."""
    with pytest.raises(ValueError, match=f"config.{name} = '?{value}'?: "):
        train(altered(small_config(), name, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_for_what_does_not_fit_together(tmp_path):
    """An autoencoder of points, a coupling of it, times of an empty range, a base and an init of other networks."""
    save_random(config_of(), tmp_path / "other")
    points, joined, empty, base, init = (small_config() for _ in range(5))
    points.data.name, points.objective.loss = "moons", "autoencoder"
    points.model = {"name": "KLAutoencoder", "channels": 8, "image_channels": 1}
    joined.update(model={"name": "KLAutoencoder", "channels": 8, "image_channels": 1})
    joined.objective.loss, joined.coupling.name = "autoencoder", "ot"
    empty.objective.time.update(name="log_snr", low=1.0, high=1.0)
    base.lora.update(rank=2, base=str(tmp_path / "other"))
    base.model["width"] = 24
    init.training.init, init.model = str(tmp_path / "other"), {"name": "MLP", "width": 5, "depth": 1}
    for config, words in (
        (points, "expected images|images of"),
        (joined, "expected regression"),
        (empty, "expected the first below"),
        (base, "is not of this config's network"),
        (init, "none of its arrays"),
    ):
        with pytest.raises(ValueError, match=words):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists(), words
