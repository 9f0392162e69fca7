"""A published autoencoder as a run: python -m experiments.from_diffusers --file=diffusion_pytorch_model.safetensors --out=runs/sd_vae

Reads weights of diffusers' AutoencoderKL, such as stabilityai/sd-vae-ft-ema's (the autoencoder of DiT and SiT), and writes an export that
experiments.autoencode encodes with. The sizes of the network are those of the arrays; theirs has GroupNorms of 32 groups, as ours from 128 channels.
"""

import json
import shutil
from itertools import count
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import autoencoder
from experiments import cli, network, state
from experiments import weights as files
from experiments.untrusted import tensors

RESNET = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2", "Conv_2": "conv_shortcut"}


def pairs(levels: int, blocks: int) -> list[tuple[str, str]]:
    """Our modules, by paths such as encoder/ResBlock_0/Conv_1, and theirs, such as encoder.down_blocks.0.resnets.0.conv2. Where theirs is missing
    from a file it is none: a skip without a convolution."""
    result = []
    for half, theirs, each in (("encoder", "down_blocks", blocks), ("decoder", "up_blocks", blocks + 1)):
        add = lambda ours, name, half=half: result.append((f"{half}/{ours}", f"{half}.{name}"))
        convs = (f"Conv_{i}" for i in count(0 if half == "encoder" else 1))
        resnets = [f"{theirs}.{level}.resnets.{i}" for level in range(levels) for i in range(each)]
        middle = ["mid_block.resnets.0", "mid_block.resnets.1"]
        add(next(convs), "conv_in")
        for i, name in enumerate([*resnets, *middle] if half == "encoder" else [*middle, *resnets]):
            for ours, part in RESNET.items():
                add(f"ResBlock_{i}/{ours}", f"{name}.{part}")
        for level in range(levels - 1):
            add(next(convs), f"{theirs}.{level}.{'down' if half == 'encoder' else 'up'}samplers.0.conv")
        for ours, part in (("GroupNorm_0", "group_norm"), ("Dense_0", "to_qkv"), ("Dense_1", "to_out.0")):
            add(f"Attention_0/{ours}", f"mid_block.attentions.0.{part}")
        add("GroupNorm_0", "conv_norm_out")
        add(next(convs), "conv_out")
        result.append((f"{half}/{next(convs)}", "quant_conv") if half == "encoder" else ("decoder/Conv_0", "post_quant_conv"))
    return result


OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names of attention in files of 2022


def converted(arrays: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """The options of a `KLAutoencoder` and its parameters by names such as encoder/Conv_0/kernel. Raises KeyError or ValueError for other weights."""
    arrays = dict(arrays)
    for name in list(arrays):
        *head, kind, leaf = name.split(".")
        if kind in OLD:
            arrays[".".join([*head, OLD[kind], leaf])] = arrays.pop(name)
    for place in ("encoder", "decoder"):
        for leaf in ("weight", "bias"):
            at = f"{place}.mid_block.attentions.0."
            arrays[f"{at}to_qkv.{leaf}"] = np.concatenate([arrays.pop(f"{at}to_{part}.{leaf}") for part in "qkv"])
    numbers = lambda start: len({name.split(".")[start.count(".")] for name in arrays if name.startswith(start)})
    levels, blocks = numbers("encoder.down_blocks."), numbers("encoder.down_blocks.0.resnets.")
    widths = [arrays[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)]
    out, channels = arrays["encoder.conv_in.weight"].shape[1], arrays["encoder.conv_in.weight"].shape[0]
    options = {"channels": channels, "multipliers": tuple(w // channels for w in widths), "blocks": blocks, "image_channels": out}
    options["latent_channels"] = arrays["decoder.conv_in.weight"].shape[1]
    params = {}
    for ours, theirs in pairs(levels, blocks):
        if f"{theirs}.weight" not in arrays and theirs.endswith("conv_shortcut"):
            continue
        weight, bias = (arrays.pop(f"{theirs}.{leaf}").astype(np.float32) for leaf in ("weight", "bias"))
        if "Dense" in ours:
            weight = weight.reshape(weight.shape[:2]).T  # some files have 1x1 convolutions
        elif weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)
        params[f"{ours}/{'scale' if 'GroupNorm' in ours else 'kernel'}"], params[f"{ours}/bias"] = weight, bias
    if arrays:
        raise ValueError(f"it has {next(iter(arrays))} too")
    return options, params


def write(file: str | Path, out: str | Path) -> dict:
    """Write the export of a safetensors file to the folder `out`; returns what its export.json says. Raises FileNotFoundError if there is no such
    file, ValueError if it holds no AutoencoderKL, FileExistsError if `out` exists."""
    file, out = Path(file), Path(out)
    if not file.is_file():
        raise FileNotFoundError(f"--file={file}: no such file")
    if out.exists():
        raise FileExistsError(f"--out={out} exists: name another folder, or remove it")
    try:
        options, params = converted(tensors(file)[0])
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"--file={file} holds no weights of diffusers' AutoencoderKL ({error})") from None
    config = autoencoder.get_config("f8")
    config.model.update(options)
    size = 8 * 2 ** (len(options["multipliers"]) - 1)
    shape = (size, size, options["image_channels"])
    like = jax.eval_shape(lambda: state.init(config, network.from_config(config, 0), shape)).params
    files.check(params, flatten_dict(like, sep="/"), f"--file={file} holds no weights of diffusers' AutoencoderKL")
    tree = unflatten_dict(params, sep="/")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of an interrupted command
    temporary.mkdir(parents=True)
    (temporary / "config.json").write_text(json.dumps(json.loads(config.to_json()), indent=1))
    said = {
        "workdir": file.name,
        "data": "images",
        "step": 0,
        "parameters": sum(a.size for a in params.values()),
        "dataset": {"shape": shape, "shift": 128.0, "scale": 128.0, "levels": 256, "num_classes": 0},
        "sha256": {weights: files.save(tree, files.file(temporary, weights)) for weights in ("ema", "raw")},
    }
    (temporary / files.SAID).write_text(json.dumps(said, indent=1))
    temporary.rename(out)
    return said


def main():
    f = flags.FLAGS
    said = write(f.file, f.out)
    print(f"{said['parameters']:,} parameters: wrote {f.out}")


if __name__ == "__main__":
    flags.DEFINE_string("file", None, "Weights in safetensors, e.g. diffusion_pytorch_model.safetensors of stabilityai/sd-vae-ft-ema.", required=True)
    flags.DEFINE_string("out", None, "Folder of the export.", required=True)
    cli.run(main)
