r"""Autoencoders as `experiments.train` trains them (`objective.loss` "autoencoder"): reconstruction, and a weak pull of the posterior to N(0, I),

    L = E_{x, z ~ q(z | x)}  [ |x - D(z)|_1 + weight KL(q(z | x) || N(0, I)) ] / (H W C),

the loss of latent diffusion (Rombach et al. 2022, 2112.10752, section 3.1 and appendix G) for each pixel value, without its perceptual (LPIPS) and
adversarial terms, which sharpen what this one leaves blurred, and without the learned scale of the first term. Images are at the middles of their
levels, in (-1, 1): not dequantized.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

import models
from experiments.cli import build
from models.autoencoder import KLAutoencoder
from sde_lib.noise import normal


@dataclass(frozen=True)
class Autoencoder:
    """A module and its functions of parameters, in the place of a `Network`. Hashable, hence static under jit."""

    module: KLAutoencoder

    def init(self, key, shape: tuple[int, ...]):
        """Parameters for images of `shape`."""
        return self.module.init(key, jnp.zeros((1, *shape)))["params"]

    def __call__(self, params, x: Float[Array, "b h w c"], noise):
        """Image, mean and log-variance: see `KLAutoencoder`."""
        return self.module.apply({"params": params}, x, noise)

    def encode(self, params, x: Float[Array, "b h w c"]) -> Float[Array, "b h/f w/f 2*z"]:
        """Mean and standard deviation of the latents, one behind the other."""
        mean, log_variance = self.module.apply({"params": params}, x, method="encode")
        return jnp.concatenate([mean, jnp.exp(0.5 * log_variance)], -1)

    def decode(self, params, z: Float[Array, "b h/f w/f z"]) -> Float[Array, "b h w c"]:
        """Images of latents."""
        return self.module.apply({"params": params}, z, method="decode")


def from_config(config: ConfigDict) -> Autoencoder:
    """The autoencoder of `config.model`. Raises ValueError for unknown names and options."""
    if config.data.augment:
        raise ValueError(f"config.data.augment = {config.data.augment}: an autoencoder is not told of augmentations; expected 0")
    if config.objective.reconstruction not in ERRORS:
        raise ValueError(f"config.objective.reconstruction = '{config.objective.reconstruction}': expected {' or '.join(ERRORS)}")
    return Autoencoder(build({"KLAutoencoder": models.KLAutoencoder}, config.model, "model"))


ERRORS = {"l1": jnp.abs, "l2": jnp.square}


def kl_divergence(mean: Float[Array, "b ..."], log_variance: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """KL(N(mean, variance) || N(0, I)) in nats."""
    return 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, range(1, mean.ndim))


def check(dataset) -> None:
    """Raise ValueError for data that are no images."""
    if not dataset.levels:
        raise ValueError(f"config.objective.loss = 'autoencoder' of {dataset.name}: expected images of discrete levels")


def loss(network: Autoencoder, params, dataset, objective: ConfigDict, key, batch) -> Float[Array, " b"]:
    """The loss of this module for each example; arguments as `objectives.loss`. Raises what `check` raises."""
    check(dataset)
    each = lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
    x = dataset.middles(dataset.mirror(each(jax.random.fold_in(key, 6)), batch["value"]))
    shape = jax.eval_shape(network.encode, params, x).shape
    noise = normal(each(key), (*shape[:-1], shape[-1] // 2), x.dtype)
    image, mean, log_variance = network(params, x, noise)
    error = jnp.mean(ERRORS[objective.reconstruction](image - x), range(1, x.ndim))
    return error + objective.kl * kl_divergence(mean, log_variance) / dataset.dim
