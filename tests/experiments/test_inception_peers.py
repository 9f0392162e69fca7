"""Inception and its distances against pytorch-fid and torch-fidelity, with the same random weights (slow: `make slow` installs them)."""

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_fid
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from experiments import inception, metrics

pytestmark = pytest.mark.slow
SIZES = [(32, 32), (299, 299), (350, 310)]


@pytest.fixture(scope="module")
def theirs():
    """pytorch-fid's network with random weights and statistics that keep activations of order one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(torchvision.models.inception.Inception3, "load_state_dict", lambda *_: None)
        net = pytorch_fid.fid_inception_v3().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in net.state_dict().items():
            if "num_batches" in name:
                continue
            noise = torch.randn(array.shape, generator=generator)
            if array.ndim > 1:
                array.copy_(noise * (2.0 / array[0].numel()) ** 0.5)
            else:
                array.copy_(1 + 0.2 * noise.clamp(-2, 2) if name.endswith(("bn.weight", "var")) else 0.1 * noise)
    return net


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(theirs.state_dict(), path)
    return path


def images(height, width, n=2):
    """Smooth ones, and noise."""
    rng = np.random.default_rng(0)
    smooth = 127 + 100 * np.sin(np.arange(height)[:, None, None] / 5 + np.arange(width)[:, None] / 9 + np.arange(3))
    return np.stack([smooth.astype(np.uint8), *rng.integers(0, 256, (n - 1, height, width, 3), np.uint8)])


def of(features, x):
    return [np.concatenate(parts) for parts in zip(*features(x, batch=2))]


@pytest.mark.parametrize("size", SIZES)
def test_pytorch_fid(theirs, file, size):
    """pool_3 of the same images, resized as pytorch-fid does, to 1e-4 of the largest feature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, "fid_inception_v3", lambda: theirs)
        net = pytorch_fid.InceptionV3().eval()
    x = images(*size)
    with torch.no_grad():
        expected = net(torch.from_numpy(x).permute(0, 3, 1, 2) / 255.0)[0].squeeze().numpy()
    pool, _ = of(inception.load(file, "torch"), x)
    assert np.abs(pool - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("size", SIZES)
def test_torch_fidelity(file, size):
    """pool_3 and the logits without bias, resized as TensorFlow 1 does, to 1e-4 of the largest."""
    net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file))
    x = images(*size)
    expected = [a.numpy() for a in net(torch.from_numpy(x).permute(0, 3, 1, 2))]
    found = of(inception.load(file), x)
    for ours, other in zip(found, expected):
        assert np.abs(ours - other).max() < 1e-4 * np.abs(other).max()
    other = of(inception.load(file, "torch"), x)[0]
    assert size == (299, 299) or np.abs(other - found[0]).max() > 1e-3 * np.abs(other).max(), "the two ways to resize differ"


def test_files_of_all_times(theirs, file, tmp_path):
    """The stream of pickles of old versions of PyTorch, and our own file, hold the same weights."""
    torch.save(theirs.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    new, old = inception.load(file), inception.load(tmp_path / "old.pth")
    inception.save(old, tmp_path / "ours.safetensors")
    ours = inception.load(tmp_path / "ours.safetensors")
    assert ours.sha256 == old.sha256 != new.sha256
    for name, array in new.params.items():
        np.testing.assert_array_equal(old.params[name], array)
        np.testing.assert_array_equal(ours.params[name], array)


def test_programs_are_refused(theirs, tmp_path):
    """A whole pickled module, and TorchScript, end in one line."""
    torch.save(theirs, tmp_path / "module.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    for name, words in (("module.pth", "it asks for torchvision"), ("script.pt", "a program")):
        with pytest.raises(ValueError, match=words):
            inception.load(tmp_path / name)


def test_distances():
    """Frechet distance, KID, Inception score and precision/recall of the same features, against pytorch-fid's and torch-fidelity's."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 600, 16)) * np.linspace(0.5, 2, 16)
    b = b + 0.3
    logits = 3 * rng.standard_normal((600, 10))
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    expected = fid_score.calculate_frechet_distance(*moments[0], *moments[1])
    assert metrics.frechet_of(*moments[0], *moments[1]) == pytest.approx(expected, rel=1e-6)

    tensors = [torch.from_numpy(x) for x in (a, b, logits)]
    verbose = {"verbose": False}
    kid = torch_fidelity.metric_kid.kid_features_to_metric(tensors[0], tensors[1], kid_subset_size=600, kid_subsets=2, **verbose)
    assert metrics.kid(a, b, subsets=2)[0] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)
    score = torch_fidelity.metric_isc.isc_features_to_metric(tensors[2], splits=10, shuffle=False)
    assert metrics.inception_score(logits) == pytest.approx((score["inception_score_mean"], score["inception_score_std"]), rel=1e-5)
    shares = torch_fidelity.metric_prc.prc_features_to_metric(tensors[0], tensors[1], prc_neighborhood=3, prc_batch_size=100, **verbose)
    near = metrics.prdc(a, b, k=3)
    assert (near.precision, near.recall) == pytest.approx((shares["precision"], shares["recall"]), abs=1e-6)


def test_resizing_has_no_other_peer_to_hide_behind():
    """Their resizing alone, of TensorFlow 1, to 1e-4 of 255."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as interpolate

    from models.inception import prepare

    for size in SIZES:
        x = images(*size)
        expected = interpolate(torch.from_numpy(x).permute(0, 3, 1, 2).float(), (299, 299), align_corners=False).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(128 * np.asarray(prepare(x, "tf1")) + 128, expected, atol=0.03)
