"""The paths of the literature, a few lines each. Conventions and everything derived: `sde_lib.sde`."""

from dataclasses import dataclass

import jax
import numpy as np

from sde_lib.numerics import as_time, namespace
from sde_lib.sde import SDE, Time


def path(cls):
    """Make a path a frozen dataclass and a static pytree."""
    cls = dataclass(frozen=True)(cls)
    return cls if issubclass(cls, SDE) else jax.tree_util.register_static(cls)


def require(ok: bool, sde: SDE, expected: str) -> None:
    """Raise ValueError with the values given and what was expected."""
    if not ok:
        raise ValueError(f"{sde}: expected {expected}")


def softplus(x):
    """log(1 + e^x) without overflow."""
    return namespace(x).logaddexp(0.0, x)


def linear_beta_integral(beta_min: float, beta_max: float, t: Time):
    """B(t) = integral from 0 to t of beta(s) = beta_min + (beta_max - beta_min) s."""
    return t * (beta_min + 0.5 * (beta_max - beta_min) * t)


def linear_beta_time(beta_min: float, beta_max: float, integral: Time):
    """The t at which `linear_beta_integral` takes the given value, without cancellation."""
    root = namespace(integral).sqrt(beta_min**2 + 2 * (beta_max - beta_min) * integral)
    return 2 * integral / (beta_min + root)


@path
class VP(SDE):
    """Variance preserving: dx = -beta x/2 dt + sqrt(beta) dw, beta linear (2011.13456, eq. 11 and 32; the limit of DDPM)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        require(0 < self.beta_min <= self.beta_max, self, "0 < beta_min <= beta_max")

    def alpha(self, t: Time):
        t = as_time(t)
        return namespace(t).exp(-0.5 * linear_beta_integral(self.beta_min, self.beta_max, t))

    def variance(self, t: Time):
        t = as_time(t)
        return -namespace(t).expm1(-linear_beta_integral(self.beta_min, self.beta_max, t))

    def sigma(self, t: Time):
        return namespace(t).sqrt(self.variance(t))

    def time(self, log_snr: Time):
        # (sigma/alpha)^2 = e^B - 1
        return linear_beta_time(self.beta_min, self.beta_max, softplus(-2 * as_time(log_snr)))


@path
class SubVP(SDE):
    """Sub-VP: the drift of VP with g^2 = beta (1 - e^(-2B)), so that sigma = 1 - e^(-B) (2011.13456, eq. 14)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        require(0 < self.beta_min <= self.beta_max, self, "0 < beta_min <= beta_max")

    def alpha(self, t: Time):
        t = as_time(t)
        return namespace(t).exp(-0.5 * linear_beta_integral(self.beta_min, self.beta_max, t))

    def sigma(self, t: Time):
        t = as_time(t)
        return -namespace(t).expm1(-linear_beta_integral(self.beta_min, self.beta_max, t))

    def time(self, log_snr: Time):
        # sigma/alpha = e^(B/2) - e^(-B/2) = 2 sinh(B/2)
        log_snr = as_time(log_snr)
        xp = namespace(log_snr)
        return linear_beta_time(self.beta_min, self.beta_max, 2 * xp.arcsinh(0.5 * xp.exp(-log_snr)))


@path
class VE(SDE):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t (2011.13456, eq. 9 and appendix C).

    sigma(0) = sigma_min, not 0: "the data" of this path are noised by sigma_min. sigma_max by data set: 50 for CIFAR-10, 90
    CelebA, 348 FFHQ 256, 380 LSUN, 1348 for 1024 pixels; these are for data in [0, 1], twice that for [-1, 1].
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    sampling_eps = 1e-5

    def __post_init__(self):
        require(0 < self.sigma_min < self.sigma_max, self, "0 < sigma_min < sigma_max")

    def alpha(self, t: Time):
        return namespace(t).ones_like(as_time(t))

    def sigma(self, t: Time):
        t = as_time(t)
        return self.sigma_min * namespace(t).exp(np.log(self.sigma_max / self.sigma_min) * t)

    def time(self, log_snr: Time):
        return (-as_time(log_snr) - np.log(self.sigma_min)) / np.log(self.sigma_max / self.sigma_min)


@path
class EDM(SDE):
    """Karras et al. 2022 (arXiv 2206.00364): alpha = 1, sigma = t, from sigma_max = T; grids end at sigma_min."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    eps = 1e-3
    few_grid = "karras"

    def __post_init__(self):
        require(0 < self.sigma_min < self.sigma_max, self, "0 < sigma_min < sigma_max")

    @property
    def T(self) -> float:
        return self.sigma_max

    @property
    def sampling_eps(self) -> float:
        return self.sigma_min

    def alpha(self, t: Time):
        return namespace(t).ones_like(as_time(t))

    def sigma(self, t: Time):
        return as_time(t)

    def time(self, log_snr: Time):
        return namespace(log_snr).exp(-as_time(log_snr))


@path
class OU(SDE):
    """Ornstein-Uhlenbeck: dx = -theta x dt + noise dw, stationary law N(0, noise^2 / (2 theta)).

    The defaults keep unit variance and leave alpha(T) = e^-5, as VP does.
    """

    theta: float = 1.0
    noise: float = float(np.sqrt(2.0))
    T: float = 5.0

    def __post_init__(self):
        require(self.theta > 0 and self.noise > 0 and self.T > 0, self, "theta, noise and T above 0")

    def alpha(self, t: Time):
        t = as_time(t)
        return namespace(t).exp(-self.theta * t)

    def variance(self, t: Time):
        t = as_time(t)
        return -(self.noise**2) / (2 * self.theta) * namespace(t).expm1(-2 * self.theta * t)

    def sigma(self, t: Time):
        return namespace(t).sqrt(self.variance(t))

    def time(self, log_snr: Time):
        # (sigma/alpha)^2 = noise^2 / (2 theta) (e^(2 theta t) - 1)
        return softplus(np.log(2 * self.theta / self.noise**2) - 2 * as_time(log_snr)) / (2 * self.theta)


@path
class Linear(SDE):
    """alpha = 1 - t, sigma = t: conditional optimal transport (Lipman et al. 2023, 2210.02747; sigma_min = 0), rectified flow
    (Liu et al. 2023, 2209.03003). Those papers put the data at t = 1; here they are at t = 0."""

    def alpha(self, t: Time):
        return 1.0 - as_time(t)

    def sigma(self, t: Time):
        return as_time(t)

    def time(self, log_snr: Time):
        return namespace(log_snr).exp(-softplus(as_time(log_snr)))


@path
class Cosine(SDE):
    """Variance preserving with alpha = cos(a)/cos(b), a = pi/2 (t + s)/(1 + s), b = a at t = 0 (Nichol & Dhariwal 2021,
    2102.09672, eq. 17). alpha(T) = 0 exactly."""

    s: float = 0.008

    def __post_init__(self):
        require(self.s >= 0, self, "s of at least 0")

    @property
    def _b(self) -> float:
        return np.pi / 2 * self.s / (1 + self.s)

    def alpha(self, t: Time):
        t = as_time(t)
        return namespace(t).sin(np.pi / 2 * (1.0 - t) / (1 + self.s)) / np.cos(self._b)

    def variance(self, t: Time):
        # 1 - cos(a)^2/cos(b)^2 = sin(a - b) sin(a + b) / cos(b)^2, which does not cancel as t -> 0
        t = as_time(t)
        xp, a_minus_b = namespace(t), np.pi / 2 * t / (1 + self.s)
        return xp.sin(a_minus_b) * xp.sin(a_minus_b + 2 * self._b) / np.cos(self._b) ** 2

    def sigma(self, t: Time):
        return namespace(t).sqrt(self.variance(t))

    def time(self, log_snr: Time):
        log_snr = as_time(log_snr)
        xp = namespace(log_snr)
        alpha2, sigma2 = xp.exp(-softplus(-2 * log_snr)), xp.exp(-softplus(2 * log_snr))
        sin_a = xp.sqrt(np.sin(self._b) ** 2 + np.cos(self._b) ** 2 * sigma2)
        a = xp.arctan2(sin_a, np.cos(self._b) * xp.sqrt(alpha2))
        return a * (1 + self.s) * 2 / np.pi - self.s


@path
class Trig(SDE):
    """alpha = cos(angle), sigma = sigma_data sin(angle), angle = pi t / (2 T).

    T = pi/2 and sigma_data = 0.5 is TrigFlow (Lu & Song 2025, 2410.11081); T = 1 and sigma_data = 1 the generalized
    variance-preserving interpolant of SiT (2401.08740).
    """

    sigma_data: float = 1.0
    T: float = float(np.pi / 2)

    def __post_init__(self):
        require(self.sigma_data > 0 and self.T > 0, self, "sigma_data and T above 0")

    def alpha(self, t: Time):
        t = as_time(t)
        return namespace(t).sin(np.pi / (2 * self.T) * (self.T - t))

    def sigma(self, t: Time):
        t = as_time(t)
        return self.sigma_data * namespace(t).sin(np.pi / (2 * self.T) * t)

    def time(self, log_snr: Time):
        xp = namespace(log_snr)
        return 2 * self.T / np.pi * xp.arctan(xp.exp(-as_time(log_snr)) / self.sigma_data)
