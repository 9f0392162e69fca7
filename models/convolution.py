"""Convolution whose gradients are convolutions in the plain layout too, for CPUs.

XLA's own gradients of a convolution keep permuted dimensions inside loops (`lax.scan`, a solver's steps), where its CPU backend then computes them
ten to twenty times slower (jax#12868). Here both are convolutions of [B, H, W, C] by [h, w, C, D]: the same numbers, as fast in a loop as out of it.
A bilinear primitive, not a `custom_vjp`: forward derivatives, which likelihoods take, and second ones are as they were.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

_plain = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolve(x, kernel, *, strides, padding):
    return _plain(x, kernel, strides, padding)


def _by_input(cotangent, x, kernel, *, strides, padding):
    """The gradient with respect to x: the cotangent, spread by the strides, convolved with the turned kernel."""
    ends = []
    for size, k, stride, (before, _), out in zip(x.aval.shape[1:3], kernel.shape, strides, padding, cotangent.shape[1:3]):
        ends.append((k - 1 - before, size + before - (out - 1) * stride - 1))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return _plain(cotangent, turned, (1, 1), ends, lhs_dilation=strides)


def _by_kernel(cotangent, x, kernel, *, strides, padding):
    """The gradient with respect to the kernel: x, its channels as examples, convolved with the cotangent, the examples as channels."""
    ends = []
    for size, k, stride, (before, _), out in zip(x.shape[1:3], kernel.aval.shape, strides, padding, cotangent.shape[1:3]):
        ends.append((before, k + (out - 1) * stride - size - before))
    turned = _plain(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), (1, 1), ends, rhs_dilation=strides)
    return turned.transpose(1, 2, 0, 3)


def _batched(args, axes, *, strides, padding):
    """One kernel for all: more examples. Otherwise what JAX makes of it."""
    x, kernel = args
    fn = partial(_convolve, strides=strides, padding=padding)
    if axes[1] is not None:
        return jax.vmap(fn, axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = convolve_p.bind(x.reshape(-1, *x.shape[2:]), kernel, strides=strides, padding=padding)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _shape(x, kernel, **options):
    y = jax.eval_shape(partial(_convolve, **options), x, kernel)
    return jax.core.ShapedArray(y.shape, y.dtype)


convolve_p = Primitive("convolve")
convolve_p.def_impl(lambda x, kernel, **options: jax.jit(partial(_convolve, **options))(x, kernel))
convolve_p.def_abstract_eval(_shape)
ad.defbilinear(convolve_p, _by_input, _by_kernel)
batching.primitive_batchers[convolve_p] = _batched
mlir.register_lowering(convolve_p, mlir.lower_fun(_convolve, multiple_results=False))


def convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c d"], strides, padding, **options) -> Float[Array, "b h' w' d"]:
    """A drop-in for `lax.conv_general_dilated` as flax's `nn.Conv` calls it; with dilation or groups, and on other devices, it is that."""
    dilations = {*(options.get("lhs_dilation") or (1,)), *(options.get("rhs_dilation") or (1,))}
    if jax.default_backend() != "cpu" or dilations != {1} or options.get("feature_group_count", 1) != 1:
        options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return convolve_p.bind(x, kernel, strides=tuple(strides), padding=tuple((int(a), int(b)) for a, b in padding))
