from setuptools import find_packages, setup

setup(
    name="sde-generative",
    version="0.1.0",
    description="Generative modelling with differential equations, in JAX: SDEs, flows, solvers and likelihoods",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sde_lib*", "models*", "samplers*", "experiments*", "configs*"]),
    install_requires=[
        "absl-py>=2.1",
        "diffrax>=0.7.2",
        "equinox>=0.13",
        "flax>=0.12",
        "grain>=0.2.12",
        "jax>=0.8.1",
        "jaxtyping>=0.3",
        "lineax>=0.1",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "scikit-learn>=1.5",
        "scipy>=1.14",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.12"],
        "peers": ["diffusers>=0.30", "torch>=2.4"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
)
