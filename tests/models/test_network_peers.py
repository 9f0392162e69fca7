"""Whole networks against diffusers' with the same random weights (slow: `make slow` installs diffusers and torch)."""

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import models
from models.unet import downsample, upsample

pytestmark = pytest.mark.slow

LEAVES = (nn.Conv, nn.Dense, nn.GroupNorm, nn.RMSNorm, nn.Embed)


def called_ours(net, *args) -> list:
    """Paths of the leaf modules in the order of their calls."""
    paths = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, LEAVES) and context.method_name == "__call__":
            paths.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(net.init, jax.random.key(0), *args)
    return paths


def called_theirs(model, run, skip=()) -> list:
    """Leaf modules with parameters, in the order of their first calls."""
    found, hooks = [], []

    def note(module, *_):
        if module not in found:
            found.append(module)

    for name, module in model.named_modules():
        if not list(module.children()) and list(module.parameters()) and not any(part in name for part in skip):
            hooks.append(module.register_forward_hook(note))
    run()
    for hook in hooks:
        hook.remove()
    return found


def converted(net, args, theirs) -> dict:
    """Our parameters from their modules in the order of calls; queries, keys and values are one Dense of ours."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
    theirs, params = list(theirs), {}
    array = lambda p: p.detach().numpy()
    for path in called_ours(net, *args):
        wanted = shapes
        for key in path:
            wanted = wanted[key]
        wanted = {name: leaf.shape for name, leaf in wanted.items()}
        module = theirs.pop(0)
        if "kernel" in wanted:
            width = wanted["kernel"][-1]
            modules = [module]
            while sum(len(m.weight) for m in modules) < width:
                modules.append(theirs.pop(0))
            kernel = np.concatenate([array(m.weight) for m in modules])
            kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T  # a patch's pixels, then its channels
            leaves = {"kernel": kernel.reshape(wanted["kernel"]), "bias": np.concatenate([array(m.bias) for m in modules])}
        elif "embedding" in wanted:
            leaves = {"embedding": array(module.weight)}
        else:
            leaves = {"scale": array(module.weight)} | ({"bias": array(module.bias)} if "bias" in wanted else {})
        assert {name: leaf.shape for name, leaf in leaves.items()} == wanted, path
        place = params
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = leaves
    assert not theirs
    return {"params": params}


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.5 / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else 0.1) + (p.ndim == 1) * 0.5)
    return model.eval()


IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
TIMES = np.array([0.25, 0.75], np.float32)
as_torch = lambda x: torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kernel", [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0)])
def test_resampling(kernel):
    """Against StyleGAN2's filters as diffusers has them."""
    from diffusers.models.downsampling import FirDownsample2D
    from diffusers.models.upsampling import FirUpsample2D

    up, down = (cls(channels=3, use_conv=False, fir_kernel=kernel) for cls in (FirUpsample2D, FirDownsample2D))
    for ours, theirs in ((upsample, up), (downsample, down)):
        expected = theirs(as_torch(IMAGES)).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours(jnp.asarray(IMAGES), kernel), expected, atol=1e-6)


UNETS = {
    "DDPM": (
        dict(embedding="positional", embedding_scale=1000.0, modulate="shift", head_channels=0),
        dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), downsample_padding=0),
    ),
    "ADM": (
        dict(embedding="positional", embedding_scale=1000.0, resample="block", head_channels=64),
        dict(
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
        ),
    ),
    "NCSN++": (
        dict(
            embedding="positional", embedding_scale=1000.0, modulate="shift", head_channels=0, resample="block_projected",
            kernel=(1.0, 3.0, 3.0, 1.0), rescale=True, grow_input="skip", grow_output="skip", decoder_attention="last",
        ),
        dict(
            down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"), up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            mid_block_scale_factor=2**0.5,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    """DDPM, ADM and NCSN++ (with progressive growing of input and output, as for its large images)."""
    ours, theirs = UNETS[name]
    net = models.UNet(channels=128, multipliers=(1, 2), blocks=2, attention=(8,), epsilon=1e-6, **ours)
    model = randomised(
        diffusers.UNet2DModel(
            sample_size=16, block_out_channels=(128, 256), layers_per_block=2, norm_num_groups=32, attn_norm_num_groups=32, norm_eps=1e-6,
            attention_head_dim=net.head_channels or None, flip_sin_to_cos=False, freq_shift=1, **theirs,
        )
    )  # fmt: skip
    run = lambda: model(as_torch(IMAGES), torch.from_numpy(1000 * TIMES)).sample
    params = converted(net, (IMAGES, TIMES), called_theirs(model, run))
    with torch.no_grad():
        expected = run().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(net.apply(params, IMAGES, TIMES), expected, atol=1e-4 * np.abs(expected).max())


def test_dit():
    net = models.DiT(width=32, depth=2, num_heads=4, num_classes=5, embedding="positional")
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=2, sample_size=16, patch_size=2, num_embeds_ada_norm=5
    )
    randomised(model)
    first, second = (block.norm1.emb for block in model.transformer_blocks)
    second.load_state_dict(first.state_dict())  # in the paper there is one
    labels = np.array([1, 4])
    run = lambda: model(as_torch(IMAGES), torch.from_numpy(1000 * TIMES), torch.from_numpy(labels)).sample
    theirs = called_theirs(model, run, skip=("transformer_blocks.1.norm1.emb",))
    params = converted(net, (IMAGES, TIMES, labels), theirs)
    kernel = params["params"]["Conditioning_0"]["Dense_0"]["kernel"]
    params["params"]["Conditioning_0"]["Dense_0"]["kernel"] = np.concatenate([kernel[128:], kernel[:128]])  # theirs: cosines first
    with torch.no_grad():
        expected = run().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(net.apply(params, IMAGES, TIMES, labels), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("normalise", [False, True])
def test_mmdit(normalise):
    """SD3's network; queries and keys normalised as in SD3.5."""
    net = models.MMDiT(width=32, depth=2, num_heads=4, normalise=normalise)
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=6,
        caption_projection_dim=32, pooled_projection_dim=7, pos_embed_max_size=8, qk_norm="rms_norm" if normalise else None,
    )  # fmt: skip
    randomised(model)
    rng = np.random.default_rng(1)
    tokens, pooled = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 6), (2, 7)))
    run = lambda: model(as_torch(IMAGES), torch.from_numpy(tokens), torch.from_numpy(pooled), torch.from_numpy(1000 * TIMES)).sample
    label = (jnp.asarray(tokens), jnp.asarray(pooled))
    theirs = called_theirs(model, run)
    both = [theirs.index(module) for module in (model.transformer_blocks[0].attn.to_add_out, model.transformer_blocks[0].attn.to_out[0])]
    theirs[both[0]], theirs[both[1]] = theirs[both[1]], theirs[both[0]]  # ours has the image first
    params = converted(net, (IMAGES, TIMES, label), theirs)
    halves = lambda a: np.concatenate(np.split(a, 2, -1)[::-1], -1)  # theirs: scale before shift, where these two are alone
    first = params["params"]["Conditioning_0"]["Dense_0"]
    first["kernel"] = np.concatenate([first["kernel"][128:], first["kernel"][:128]])
    for dense in (params["params"]["MMDiTBlock_1"]["Dense_1"], params["params"]["Dense_2"]):
        dense.update({name: halves(leaf) for name, leaf in dense.items()})
    with torch.no_grad():
        expected = run().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(net.apply(params, IMAGES, TIMES, label), expected, atol=1e-4 * np.abs(expected).max())


def kl_autoencoders():
    """Ours and diffusers' of the same kind; widths of which each group of a GroupNorm has the same number of channels in both."""
    model = diffusers.AutoencoderKL(
        block_out_channels=(128, 256), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3,
        layers_per_block=2, norm_num_groups=32,
    )  # fmt: skip
    return models.KLAutoencoder(channels=128, multipliers=(1, 2), latent_channels=3), randomised(model)


@pytest.mark.parametrize("old", [False, True])
def test_kl_autoencoder(old, tmp_path):
    """A file of diffusers' weights, as it is today and as it was in 2022, is a run of ours that encodes and decodes as theirs."""
    import safetensors.torch

    from experiments import from_diffusers, runs

    net, model = kl_autoencoders()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"} if old else {}
    arrays = {}
    for name, array in model.state_dict().items():
        for new, former in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        arrays[name] = array[..., None, None] if old and "attentions" in name and array.ndim == 2 else array
    safetensors.torch.save_file({name: array.contiguous() for name, array in arrays.items()}, tmp_path / "vae.safetensors")
    from_diffusers.write(tmp_path / "vae.safetensors", tmp_path / "out")
    run = runs.load_run(tmp_path / "out")
    assert run.network.module == net
    with torch.no_grad():
        posterior = model.encode(as_torch(IMAGES)).latent_dist
        decoded = model.decode(posterior.mean).sample.permute(0, 2, 3, 1).numpy()
    mean, std = np.split(run.network.encode(run.params, IMAGES), 2, -1)
    for ours, theirs in ((mean, posterior.mean), (std, posterior.std)):
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    np.testing.assert_allclose(run.network.decode(run.params, mean), decoded, atol=1e-4 * np.abs(decoded).max())
