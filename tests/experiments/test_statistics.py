"""Statistics of features, and what evaluation makes of them and of files of samples; the features are a few projections of the image here."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import data, evaluate, metrics, sources, statistics

RNG = np.random.default_rng(0)
DIGITS = data.load(ConfigDict({"name": "digits"}))


@dataclass(frozen=True)
class Projections:
    """In the place of `inception.Features`."""

    batch: int = 64
    sha256: str = "0123456789abcdef"
    resize: str = "tf1"

    def __call__(self, images, start=0):
        flat = images.reshape(len(images), -1) / 255.0
        for start in range(start, len(flat), self.batch):  # noqa: B020
            pool = (flat[start : start + self.batch] @ np.random.default_rng(1).standard_normal((flat.shape[1], 6))).astype(np.float32)
            yield pool, pool[:, :4]

    def about(self):
        return {"inception": self.sha256[:8], "resize": self.resize}


IMAGES = RNG.integers(0, 256, (250, 8, 8, 1), np.uint8)


def test_moments_do_not_depend_on_batches(tmp_path):
    """Streamed, they are NumPy's of all features, to 1e-12; features are kept evenly, and all is in the file."""
    pool = np.concatenate([pool for pool, _ in Projections()(IMAGES)])
    for batch in (7, 250):
        found = statistics.compute(Projections(batch), IMAGES, keep=50)
        for ours, expected in zip((found.mu, found.sigma), metrics.moments(pool)):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, expected, atol=1e-12)
        assert found.n == 250 and len(found.features) == 50
        np.testing.assert_array_equal(found.features[[0, -1]], pool[[0, -1]])
    found.save(tmp_path / "stats.npz")
    again = statistics.read(tmp_path / "stats.npz")
    assert (again.hash, again.n, again.about) == (found.hash, 250, Projections().about())
    np.testing.assert_array_equal(again.features, found.features)
    with pytest.raises(ValueError, match="1 images: expected at least 2"):
        statistics.compute(Projections(), IMAGES[:1])


def test_layouts(tmp_path):
    """Of EDM and pytorch-fid, meanflow, score_sde, and ADM's reference batches, all the same; others are refused in one line."""
    pool = RNG.standard_normal((40, 6))
    mu, sigma = metrics.moments(pool)
    for arrays in (
        {"mu": mu, "sigma": sigma},
        {"ref_mu": mu, "ref_sigma": sigma},
        {"pool_3": pool, "logits": pool},
        {"arr_0": IMAGES, "mu": mu, "sigma": sigma, "mu_s": mu[:2], "sigma_s": sigma[:2, :2]},
    ):
        np.savez(tmp_path / "stats.npz", **arrays)
        found = statistics.read(tmp_path / "stats.npz")
        np.testing.assert_allclose(found.mu, mu, atol=1e-12)
        np.testing.assert_allclose(found.sigma, sigma, atol=1e-12)
        assert found.n == (40 if "pool_3" in arrays else 0) and found.about == {} and len(found.features) == found.n
    for arrays, words in (
        ({"mean": mu}, "has the arrays mean: expected mu and sigma, ref_mu and ref_sigma, or pool_3"),
        ({"mu": mu, "sigma": sigma[:3]}, r"a covariance \(3, 6\)"),
        ({"mu": mu + np.nan, "sigma": sigma}, "expected finite"),
        ({"pool_3": pool[0]}, r"has features \(6,\)"),
        ({"mu": np.array([None]), "sigma": sigma}, "cannot be read"),
    ):
        np.savez(tmp_path / "stats.npz", **arrays)
        with pytest.raises(ValueError, match=words):
            statistics.read(tmp_path / "stats.npz")
    (tmp_path / "stats.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        statistics.read(tmp_path / "stats.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        statistics.read(tmp_path / "none.npz")


def test_those_of_the_training_data_are_kept(tmp_path, monkeypatch):
    """Computed once for each extractor, way to resize and data."""
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    first = statistics.of_training_data(Projections(), DIGITS)
    assert first.n == 1437

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(statistics, "compute", refuse)
    assert statistics.of_training_data(Projections(), DIGITS).hash == first.hash
    with pytest.raises(AssertionError):
        statistics.of_training_data(Projections(resize="torch"), DIGITS)


def test_figures_of_features():
    """FID of the reference itself is 0, of a shift of every feature what it is; the name tells fewer than 50,000; other features are refused."""
    reference = statistics.compute(Projections(), IMAGES)
    found = evaluate.in_inception(Projections(), IMAGES, reference)
    assert [*found] == ["FID-250", "IS-250", "KID-250", "Inception precision-250", "Inception recall-250"]
    assert found["FID-250"][0] == pytest.approx(0, abs=1e-5) and found["Inception precision-250"][0] == 1
    moved = statistics.Statistics(reference.mu + 2, reference.sigma, 0, np.zeros((0, 6)), {})
    assert evaluate.in_inception(Projections(), IMAGES, moved)["FID-250"][0] == pytest.approx(24.0)
    assert [evaluate.count(n) for n in (50_000, 10_000, 360)] == ["", "-10k", "-360"]
    with pytest.raises(ValueError, match="the reference is of resize tf1, not torch"):
        evaluate.in_inception(Projections(resize="torch"), IMAGES, reference)
    with pytest.raises(ValueError, match="the reference is of 5 features: expected 6"):
        evaluate.in_inception(Projections(), IMAGES, statistics.Statistics(np.zeros(5), np.eye(5), 0, np.zeros((0, 5)), {}))


def test_samples_of_a_file(tmp_path):
    """Levels come back from 0 to 255, labels and how they were drawn too, unless the file is another since; misfits are refused."""
    file, test = tmp_path / "samples.npz", DIGITS.values["test"]
    np.savez(file, arr_0=statistics.images_of(DIGITS, test), arr_1=DIGITS.labels["test"])
    samples = evaluate.from_file(file, DIGITS)
    order = np.random.default_rng(0).permutation(len(test))  # a file may be in the order of its classes
    np.testing.assert_array_equal(samples.values, test[order])
    np.testing.assert_array_equal(samples.labels, DIGITS.labels["test"][order])
    (tmp_path / "samples.json").write_text(json.dumps({"sha256": samples.about["sha256"], "nfe": 7}))
    assert evaluate.from_file(file, DIGITS).about["nfe"] == 7
    np.savez(file, arr_0=IMAGES)
    other = evaluate.from_file(file, None)
    assert other.labels is None and other.images is not None and "nfe" not in other.about
    for arrays, words in (
        ({"arr_0": IMAGES.astype(np.float32)}, r"of float32: expected uint8 \(8, 8, 1\), as digits"),
        ({"arr_0": IMAGES[:, :4]}, r"has examples \(4, 8, 1\)"),
        ({"arr_0": IMAGES, "arr_1": np.zeros(3)}, r"has labels \(3,\): expected 250"),
        ({"x": IMAGES}, "has the arrays x: expected arr_0"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=words):
            evaluate.from_file(file, DIGITS)


def test_the_classifier_is_kept_and_judges_labels(tmp_path, monkeypatch):
    """Trained once; the data agree with their labels, and not with those of others; labels that nobody asked for are not judged."""
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    judge = metrics.classifier(evaluate.flat(DIGITS.values["train"][:150]), DIGITS.labels["train"][:150])
    judge.save(tmp_path / "classifiers" / f"{data.fingerprint(DIGITS.values['train'], DIGITS.labels['train'])[:24]}.npz")
    measure = evaluate.measures(DIGITS, 200)
    values, labels = DIGITS.values["test"], DIGITS.labels["test"]
    found, wrong = measure(values, labels), measure(values, (labels + 1) % 10)
    assert found["label agreement"] > 0.7 and wrong["label agreement"] < 0.1
    assert f"FD-clf ({judge.hash})" in found and "label agreement" not in measure(values, None)
