"""Numbers of a user's files: what is made of them, and that likelihoods and samples are theirs again."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from experiments import cli, couplings, data, drift, network, records, sources, units, weights
from models import EDM2, UNet
from sde_lib import GaussianMixture

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def forget(tmp_path, monkeypatch):
    data._images.cache_clear()
    monkeypatch.setattr(records, "CACHE", tmp_path / "cache")


@pytest.fixture
def load(tmp_path):
    """load(facts=None, options={}, x=..., y=...): the data set of an npz file of these arrays."""

    def make(facts=None, options=(), **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        data._images.cache_clear()
        return data.load(ConfigDict({"name": "npz", "path": str(tmp_path / "a.npz"), **dict(options)}), facts)

    return make


def keys(n):
    return jax.random.split(jax.random.key(0), n)


def exact(dataset, split="test"):
    """Mean -log p in nats of Gaussian data by the exact density of x, N(0, 1) in each coordinate."""
    x = dataset.to_x(None, dataset.values[split])
    return dataset.score(GaussianMixture(np.zeros((1, dataset.dim)), np.ones(1)).log_prob(x)).mean()


# --- floats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [(1e-3, 1.0, 1e3), (1e-2, 1.0, 1e3), (1e-30, 1e30, 1e-3)])
def test_columns_of_any_scale_have_their_entropy(load, scales):
    """3/2 log(2 pi e) + sum log std nats, 4.257 for 1e-3, 1, 1e3; with one scale, or without the Jacobian, another number."""
    x = RNG.normal(size=(6000, 3)) * scales
    d = load(x=x[:4000], x_test=x[4000:])
    truth = 1.5 * np.log(2 * np.pi * np.e) + np.sum(np.log(scales))
    assert abs(exact(d) - truth) < 4 * np.sqrt(1.5 / 2000) + 0.01  # the standard error, and that of the fitted scales
    back = d.raw(d.from_x(d.to_x(keys(2000), d.values["test"])))
    np.testing.assert_allclose(back, x[4000:], rtol=2e-6, atol=2e-6 * np.min(scales))
    np.testing.assert_allclose(d.raw(d.from_x(RNG.normal(size=(4000, 3)))).std(0), x[:4000].std(0), rtol=0.05)
    assert "each of 3 coordinates" in d.space and "config.data.standardize" in d.reading
    if max(scales) == 1e3:
        one = load(options={"standardize": "one"}, x=x[:4000], x_test=x[4000:])
        assert exact(one) - truth > 5 and one.units.step == 1.0  # control
    without = d.score(np.zeros(1)) - np.sum(np.log(scales))
    assert abs(without) < 0.1  # the Jacobian is all that is added to -log p(x)


def test_a_large_offset_costs_no_digits(load):
    """1e7 + N(0, 1) in float64: the entropy and the standard deviation of N(0, 1), by either scale, and float64 samples."""
    x = 1e7 + RNG.normal(size=(6000, 3))
    for mode in ("", "one"):
        d = load(options={"standardize": mode}, x=x[:4000], x_test=x[4000:])
        assert abs(exact(d) - 1.5 * np.log(2 * np.pi * np.e)) < 4 * np.sqrt(1.5 / 2000) + 0.01
        back = d.raw(d.values["test"])
        assert back.dtype == np.float64
        np.testing.assert_allclose(back, x[4000:], rtol=0, atol=1e-6)
    assert len(np.unique(x[:, 0].astype(np.float32))) < 12  # control: what a cast leaves of it
    for arrays, options, words in (
        (x.astype(np.float32), {}, "float32 numbers near 1e.07 are .* standard deviations apart"),
        (x, {"standardize": "none"}, "expected config.data.standardize = one"),
        (x, {"standardize": "colum"}, "expected coordinate, one, none"),
    ):
        with pytest.raises(ValueError, match=words):
            load(options=options, x=arrays)
    images = load(x=1e7 + RNG.normal(size=(40, 4, 4, 3)) * [1, 2, 3])
    assert np.ndim(images.units.step) == 0 and images.scale == pytest.approx(np.sqrt(14 / 3), rel=0.1)  # one scale


def test_facts_of_a_run_read_other_files_in_its_way(load, tmp_path):
    """Scales are those of the run and not of the file at hand; a run without facts or options has one scale and 256 levels."""
    x = RNG.normal(size=(100, 2)) * [1, 100]
    d = load(x=x)
    facts = json.loads(json.dumps(d.facts))
    other = load(facts, x=3 * x + 5)
    np.testing.assert_allclose(other.values["train"], (d.raw(d.values["train"]) * 3 + 5 - d.units.origin) / d.units.step, rtol=1e-5, atol=1e-6)
    none = data.empty("npz", facts)
    np.testing.assert_allclose(none.raw(none.from_x(np.ones((1, 2)))), d.units.origin[None] + d.units.step)
    assert none.score(np.zeros(1)) == d.score(np.zeros(1))
    for broken in ({"origin": [0.0], "step": 1.0, "dtype": ""}, {"origin": 0.0, "step": 0.0, "dtype": ""}):
        with pytest.raises(ValueError, match="units"):
            data.empty("npz", facts | {"units": broken})
    with pytest.raises(ValueError, match="on which the run was trained"):
        load(facts, x=x[:, :1])
    (tmp_path / "data.json").write_text(json.dumps(drift.examined(d)))
    assert weights.facts(tmp_path) == facts
    old = default.get_config().to_dict()
    old["data"] = {"name": "npz", "path": str(tmp_path / "a.npz"), "size": 0}
    (tmp_path / "config.json").write_text(json.dumps(old))
    now = cli.load_config(tmp_path).data
    assert (now.standardize, now.levels, now.mode) == ("one", units.WHOLE_TYPE, "RGB")
    before = load(options=now.to_dict() | {"path": str(tmp_path / "a.npz")}, x=x)
    u = before.raw(before.values["train"])
    np.testing.assert_allclose(before.to_x(keys(95), before.values["train"]), (u - u.mean()) / u.std(), rtol=1e-4, atol=1e-5)


def test_a_reading_drifts_only_if_it_is_another(load):
    x = RNG.normal(size=(40, 2)) * [1, 100]
    found = {mode: drift.examined(load(options={"standardize": mode}, x=x)) for mode in ("", "coordinate", "one")}
    flat = cli.flat(default.get_config())
    for mode, kind in (("coordinate", drift.FREE), ("one", drift.RESULT)):
        assert drift.same(found[""], found[mode])  # the same data
        alike = drift.same_reading(found[""], found[mode])
        assert drift.drifted(flat, flat | {"data.standardize": mode}, True, alike) == {"data.standardize": kind}


def test_a_source_is_read_in_the_units_of_the_data(load, tmp_path):
    """Both ends of a coupling are of one map, whatever file they are of."""
    x = RNG.normal(size=(100, 2)) * [1, 100] + 1e5
    d = load(x=x)
    np.savez(tmp_path / "b.npz", x=2 * x, y=np.arange(100) % 2)
    named = lambda **source: ConfigDict({"source": {"variant": "", "path": "", **source}})
    other = couplings.source_of(named(name="npz", path=str(tmp_path / "b.npz")), d)
    np.testing.assert_allclose(d.raw(other.values["test"]), 2 * x[[19, 39, 59, 79, 99]], rtol=1e-6)
    toy = couplings.source_of(named(name="8gaussians"), d)
    raw = data.load(ConfigDict({"name": "8gaussians"})).values["test"][:5]
    np.testing.assert_allclose(d.raw(d.from_x(toy.to_x(None, toy.values["test"][:5]))), raw, atol=2e-2)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": np.hstack([RNG.normal(size=(40, 2)), np.full((40, 1), 5.0)])}, "coordinate 2 is 5 in every training example"),
        ({"x": RNG.normal(size=(1, 2)), "x_test": np.ones((3, 2))}, "1 example to train: expected at least 2"),
        ({"x": np.where(np.arange(40)[:, None] == 17, np.nan, RNG.normal(size=(40, 2)))}, r"x\[17\] of 40 examples has the value nan"),
        ({"x": RNG.normal(size=(40, 2)), "x_test": np.full((3, 2), -np.inf)}, r"x_test\[0\] and 2 more of 3 .* -inf"),
        ({"x": RNG.normal(size=(19, 2))}, "19 examples: expected at least 20"),
        ({"x": RNG.normal(size=40)}, r"of one number each: x\[:, None\]"),
        ({"x": np.zeros((0, 2))}, "0 examples"),
        ({"x": RNG.normal(size=(40, 2)), "x_test": RNG.normal(size=(3, 4))}, r"3 examples \(4,\)"),
        ({"x": RNG.normal(size=(40, 2)), "lables": np.arange(40)}, "'lables', which nothing uses; did you mean labels"),
        ({"x": RNG.normal(size=(40, 2)), "Y": np.arange(40)}, "'Y', which nothing uses; did you mean y"),
        ({"x": RNG.normal(size=(40, 2)), "images": RNG.normal(size=(40, 2))}, "two arrays of x"),
        ({"x": RNG.normal(size=(40, 2)), "y_test": np.arange(40)}, "y_test without x_test"),
        ({"x": np.full((40, 2), "a")}, "of <U1: expected x"),
        ({"x": 1e200 * RNG.normal(size=(40, 2))}, "squares are no numbers"),
        ({"x": RNG.integers(0, 10**6, (400, 2))}, "at most 65536 levels"),
        ({"x": np.full((40, 2), 3)}, "the value 3 everywhere"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(load, arrays, words):
    with pytest.raises(ValueError, match=words) as error:
        load(**arrays)
    assert "\n" not in str(error.value)


# --- integers -------------------------------------------------------------------------------------------

LEVELS = [  # the integers of a file, their type -> levels, the first and the step
    ([0, 1], "uint8", 2, 0, 1),
    ([False, True], "bool", 2, 0, 1),
    ([0, 255], "uint8", 2, 0, 255),
    ([1, 2], "int64", 2, 1, 1),
    ([-1, 1], "int8", 2, -1, 2),
    (range(17), "uint8", 17, 0, 1),
    (range(3, 17), "uint8", 17, 0, 1),
    (range(251), "uint8", 256, 0, 1),
    (range(0, 256, 17), "uint8", 16, 0, 17),
    ([0, 85, 255], "uint8", 4, 0, 85),
    (range(-3, 5), "int32", 8, -3, 1),
    (range(4000), "uint16", 4096, 0, 1),
    (range(0, 65536, 16), "uint16", 4096, 0, 16),
]


@pytest.mark.parametrize("numbers, dtype, levels, first, step", LEVELS)
def test_levels_are_found(load, numbers, dtype, levels, first, step):
    """Each integer is its level and comes back in its own type; independent uniform levels have log2(levels) bits."""
    x = np.resize(np.array(list(numbers), dtype), (4096, 2, 2))
    d = load(x=x, x_test=x)
    assert (d.levels, d.units.origin, d.units.step) == (levels, first, step)
    np.testing.assert_array_equal(d.raw(d.values["train"]), x)
    assert d.raw(d.values["train"]).dtype == x.dtype
    np.testing.assert_array_equal(d.from_x(d.to_x(keys(len(x)), d.values["train"])), d.values["train"])
    uniform = d.dim * np.log(1 / 2)  # the density of x uniform on [-1, 1)
    np.testing.assert_allclose(d.score(np.array([uniform])), np.log2(levels), rtol=1e-12)


def test_fair_bits_have_one_bit(load):
    """Of the exact model of levels {0, 1} or {0, 255}; as 256 levels, as before, the same data need 8 bits of the same model."""
    for top in (1, 255):
        x = (top * RNG.integers(0, 2, (200, 4, 4, 1))).astype(np.uint8)
        d = load(x=x)
        values = d.to_x(keys(190), d.values["train"])
        assert -1 <= values.min() and values.max() < 1 and abs(float(values.std()) - 1 / np.sqrt(3)) < 0.02
        assert d.score(np.full(1, -16 * np.log(2)))[0] == pytest.approx(1.0, rel=1e-12)
        declared = load(options={"levels": 256}, x=x)
        assert declared.levels == 256 and declared.score(np.full(1, -16 * np.log(2)))[0] == pytest.approx(8.0)
        assert f"2 levels, 0 and {top}" in d.reading


def test_other_levels_are_refused_later(load):
    binary = np.resize(np.array([0, 255], np.uint8), (40, 4, 4, 1))
    facts = json.loads(json.dumps(load(x=binary).facts))
    assert load(facts, x=np.zeros_like(binary)).levels == 2  # of the run, though the file has one value
    with pytest.raises(ValueError, match="the value 128, which is none of the 2 levels, 0 and 255"):
        load(facts, x=np.where(binary == 255, 128, 0).astype(np.uint8))
    with pytest.raises(ValueError, match="the value 255, which is none of the 17 levels"):
        load(options={"levels": 17}, x=binary)
    for levels, x, words in ((1, binary, "expected 2 to 65536"), (2, RNG.normal(size=(40, 2)), "no levels"), (-1, binary.astype(int), "bool, uint8")):
        with pytest.raises(ValueError, match=words):
            load(options={"levels": levels}, x=x)


def test_samples_files_are_read_as_they_are_written(load):
    """Images of up to 256 levels as 0 to 255, or in the user's numbers; others in the user's numbers alone."""
    for numbers, dtype, shape in (
        ([0, 1], "uint8", (4, 4, 1)),
        (range(17), "uint8", (4, 4, 1)),
        (range(4000), "uint16", (4, 4, 1)),
        ([0, 5], "int32", (3,)),
    ):
        x = np.resize(np.array(list(numbers), dtype), (4000, *shape))
        d = load(x=x)
        values = d.values["test"]
        np.testing.assert_array_equal(d.read(d.written(values)), values)
        np.testing.assert_array_equal(d.read(d.raw(values)), values)
    assert d.written(values).dtype == np.int32 and d.written(values).max() == 5
    x = RNG.normal(size=(40, 2)) * [1, 100]
    d = load(x=x)
    np.testing.assert_allclose(d.read(d.written(d.values["test"])), d.values["test"], atol=1e-6)


def test_records_have_levels_and_scales(tmp_path):
    """As the same numbers of an npz; another integer is refused when it is read."""
    x = RNG.normal(size=(40, 3)) * [1e-3, 1, 1e3]
    records.write(tmp_path / "floats", x)
    read = lambda name, facts=None: data.load(ConfigDict({"name": "array_record", "path": str(tmp_path / name)}), facts)
    d = read("floats")
    np.testing.assert_allclose(d.raw(d.values["test"]), x[[19, 39]], rtol=1e-5)
    np.testing.assert_allclose(np.std(d.values["train"], 0), 1, rtol=1e-5)
    bits = np.resize(np.array([0, 255], np.uint8), (40, 4, 4, 1))
    records.write(tmp_path / "bits", bits, np.array([7, 9] * 20))
    d = read("bits")
    assert d.levels == 2 and d.classes == (7, 9) and set(np.unique(d.values["test"])) == {0, 1}
    records.write(tmp_path / "grey", bits // 2)
    with pytest.raises(ValueError, match="the value 127"):
        np.asarray(read("grey", d.facts | {"num_classes": 0, "classes": []}).values["train"])


# --- labels ---------------------------------------------------------------------------------------------


def test_any_integers_are_classes(load):
    """{0, 7, 1000000} are three, by which samples are asked for and written; a run keeps them."""
    x, y = RNG.integers(0, 256, (60, 2, 2, 1)).astype(np.uint8), np.array([0, 7, 10**6])[np.arange(60) % 3]
    d = load(x=x, y=y)
    assert d.num_classes == 3 and d.classes == (0, 7, 10**6) and "the labels 0, 7, 1000000 are classes 0 to 2" in d.reading
    np.testing.assert_array_equal(d.labels_written(d.labels["test"]), y[19::20])
    np.testing.assert_array_equal(d.labels_read(y[19::20]), d.labels["test"])
    assert d.class_of(7) == 1
    for wrong in (lambda: d.class_of(1), lambda: d.labels_read(np.array([1]))):
        with pytest.raises(ValueError, match="expected 0, 7, 1000000"):
            wrong()
    facts = json.loads(json.dumps(d.facts))
    again = load(facts, x=x, y=np.where(y == 7, 0, y))  # a later file, without one of them
    assert again.num_classes == 3 and set(again.labels["train"]) == {0, 2}
    assert load(x=x, y=np.arange(60) % 2 == 1).num_classes == 2 and load(x=x, y=np.arange(60) % 3).classes == ()
    assert load(options={"classes": 10}, x=x, y=np.arange(60) % 3).num_classes == 10
    assert load(x=x, y=1 + np.arange(60) % 3).num_classes == 3
    with pytest.raises(ValueError, match="the class 8, which is none of 0, 7, 1000000"):
        load(facts, x=x, y=np.where(y == 7, 8, y))


@pytest.mark.parametrize(
    "y, words",
    [
        (np.arange(40) % 3 - 1, "integers from 0, not -1"),
        (np.arange(40) % 3 * 1.0, r"y.astype\(int\)"),
        (np.eye(3)[np.arange(40) % 3], r"y.argmax\(1\)"),
        (np.arange(40)[:, None] % 3, r"y\[:, 0\]"),
        ((np.arange(40) % 3).astype(str), "return_inverse"),
        (np.arange(39), "39 labels of 40 examples"),
        (np.arange(40), "the label 19 to test: expected those of the training data"),
    ],
)
def test_labels_that_are_none_are_refused(load, y, words):
    with pytest.raises(ValueError, match=words):
        load(x=RNG.integers(0, 256, (40, 2, 2, 1)).astype(np.uint8), y=y)


def test_embeddings_that_a_network_does_not_take_are_refused(tmp_path):
    from experiments.train import train

    np.savez(tmp_path / "a.npz", x=RNG.normal(size=(40, 2)), tokens=RNG.normal(size=(40, 3, 5)), pooled=RNG.normal(size=(40, 7)))
    config = default.get_config()
    config.data.update(name="npz", path=str(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match="tokens and pooled, which config.model.name = 'MLP' does not use"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and network.from_config(config, 0, (3, 5, 7))  # as a run of before loads


def test_sources_say_what_labels_stand_for(tmp_path):
    np.savez(tmp_path / "a.npz", x=RNG.integers(0, 256, (40, 2)), y=np.arange(40) % 2 * 5)
    assert sources.npz(str(tmp_path / "a.npz"))[2] == (0, 5)


# --- attention ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 28])
def test_attention_of_any_size(size):
    """-1 stands for the levels up to 16 and the lowest; EDM2 has it by default where there are no levels 16 and 8; a height that
    is none is refused."""
    x, t = np.zeros((1, size, size, 1), np.float32), np.zeros(1, np.float32)
    parameters = lambda module: jax.eval_shape(lambda: module.init(jax.random.key(0), x, t))["params"]
    small = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1}
    attending = lambda params: [name for name in params if name.startswith("Attention")]
    low = sum(h <= 16 for h in (size, size // 2, size // 4))
    assert len(attending(parameters(UNet(**small, attention=(-1,))))) == 3 * low + 1
    assert parameters(EDM2(**small))
    with pytest.raises(ValueError, match=r"attention='\(-1,\)'"):
        parameters(UNet(**small, attention=(7 * size,)))


def test_a_teacher_of_other_units_is_refused(load):
    """Its x stands for other numbers; of the same file read in the same way it does not."""
    from experiments.train import check_space

    x = RNG.normal(size=(100, 2)) * [1, 100]
    own, one = load(x=x), load(options={"standardize": "one"}, x=x)
    check_space(own, load(x=x + 1e-3), "teacher")
    with pytest.raises(ValueError, match=r"teacher was trained on x = \(u - .*each of 2 coordinates.*expected the same"):
        check_space(one, own, "teacher")
