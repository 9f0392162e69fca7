"""Weights of FID's InceptionV3: python -m experiments.inception --weights=pt_inception-2015-12-05-6726825d.pth --out=inception.safetensors

Reads the public files, without PyTorch and without executing anything in them: that of pytorch-fid and torch-fidelity (a state dict of PyTorch),
and jax-fid's pickled dictionary of arrays; and what this command writes. All of them are --inception_weights of `experiments.statistics` and
`experiments.evaluate`. NVIDIA's inception-2015-12-05.pkl is a program, and is not read.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import UInt8
from safetensors.numpy import save_file

from experiments import cli, inert, kept, parallel, runs
from experiments.untrusted import tensors
from models.inception import RESIZES, Inception

PUBLISHED = {"6726825d": "pytorch-fid's and torch-fidelity's", "4e030efa": "jax-fid's"}  # how the SHA-256 of the public files begin
EPSILON = 1e-3  # of the batch normalization
BATCH = 64


def shapes() -> dict[str, tuple[int, ...]]:
    """Of all parameters, by names such as Mixed_5b/branch1x1/kernel."""
    like = jax.eval_shape(Inception().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8))
    return {name: leaf.shape for name, leaf in flatten_dict(like["params"], sep="/").items()}


def folded(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters of a public file's arrays, the normalization y = scale (Wx - mean)/sqrt(var + 1e-3) + bias made part of each convolution, in
    float64. Kernels are [O, I, H, W] in files of PyTorch, [H, W, I, O] in jax-fid's. Raises KeyError for an array that is missing."""
    of_torch = "fc.weight" in arrays
    names = ("weight", "bias", "running_mean", "running_var") if of_torch else ("scale", "bias", "mean", "var")
    result = {"fc/kernel": arrays["fc.weight"].T if of_torch else arrays["fc.kernel"]}
    for layer in sorted({name.rpartition("/")[0] for name in shapes()} - {"fc"}):
        of = layer.replace("/", ".")
        scale, bias, mean, variance = (arrays[f"{of}.bn.{name}"].reshape(-1).astype(np.float64) for name in names)
        scale = scale / np.sqrt(variance + EPSILON)
        kernel = arrays[f"{of}.conv.weight"].transpose(2, 3, 1, 0) if of_torch else arrays[f"{of}.conv.kernel"]
        result |= {f"{layer}/kernel": kernel * scale, f"{layer}/bias": bias - mean * scale}
    return {name: np.ascontiguousarray(value, np.float32) for name, value in result.items()}


@dataclass(frozen=True)
class Features:
    """Inception with its weights. sha256: of the public file that they are of. resize: see `models.inception.prepare`."""

    params: dict
    sha256: str
    resize: str = "tf1"

    def __call__(self, images: UInt8[np.ndarray, "n h w c"], start: int = 0, batch: int = BATCH):
        """Yields pool_3 [b, 2048] and logits [b, 1008] of images of 0 to 255 from number `start`, in float32, batch by batch; no result depends on
        `batch`."""
        batch = -(-batch // jax.device_count()) * jax.device_count()
        params = parallel.replicate({"params": unflatten_dict(self.params, sep="/")})
        apply = jax.jit(Inception(self.resize).apply)
        yield from runs.in_batches(lambda keys, images: apply(params, images), len(images), batch, jax.random.key(0), images, start=start)

    def about(self) -> dict:
        """What every figure in these features is reported with."""
        return {"inception": self.sha256[:8], "resize": self.resize}


def load(path: str | Path, resize: str = "tf1") -> Features:
    """The weights in a file, and a line where they are none of the published ones. Raises FileNotFoundError if there is none, ValueError if it holds
    something else, or for an unknown `resize`."""
    if resize not in RESIZES:
        raise ValueError(f"--resize={resize}: expected {' or '.join(RESIZES)}")
    path = Path(path)
    if path.suffix == ".safetensors":
        params, sha256 = _ours(path)
    else:
        try:
            params = folded(inert.read(path))
        except (KeyError, ValueError, AttributeError) as error:
            lacks = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"--inception_weights={path}: {lacks}; expected the file of pytorch-fid, torch-fidelity or jax-fid") from None
        sha256 = kept.sha256(path)
    for name, shape in shapes().items():
        found = params[name].shape if name in params else "missing"
        if found != shape or not np.isfinite(params[name]).all():
            raise ValueError(f"--inception_weights={path}: {name} is {found}, expected {shape} of finite numbers")
    if sha256[:8] not in PUBLISHED:
        print(f"{path} is none of the published files (SHA-256 {sha256[:8]}, expected {' or '.join(PUBLISHED)}): its FID is not comparable")
    return Features(params, sha256, resize)


def _ours(path: Path) -> tuple[dict, str]:
    try:
        params, about = tensors(path)
        return params, about["sha256"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"--inception_weights={path} is not what `python -m experiments.inception` writes ({error})") from None


def save(features: Features, path: Path) -> None:
    """Write the weights, with the SHA-256 of the file that they are of, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(features.params, temporary, {"sha256": features.sha256})
    temporary.rename(path)


def define_flags() -> None:
    """The flags by which commands choose the features."""
    flags.DEFINE_string("inception_weights", "", "Weights of FID's InceptionV3: see `experiments.inception`.")
    flags.DEFINE_enum("resize", "tf1", RESIZES, "Interpolation to 299 pixels: tf1, as the graph and torch-fidelity; torch, as pytorch-fid.")


def main():
    f = flags.FLAGS
    if Path(f.out).suffix != ".safetensors":
        raise ValueError(f"--out={f.out}: expected a name that ends in .safetensors")
    features = load(f.weights)
    if Path(f.out).exists() and load(f.out).sha256 != features.sha256:
        raise ValueError(f"--out={f.out} has other weights than --weights={f.weights}: name another file, or remove it")
    save(features, Path(f.out))
    print(f"{sum(a.size for a in features.params.values()):,} parameters of {f.weights}, SHA-256 {features.sha256}: wrote {f.out}")


if __name__ == "__main__":
    flags.DEFINE_string("weights", None, "The public file.", required=True)
    flags.DEFINE_string("out", "inception.safetensors", "Where the weights go.")
    cli.run(main)
