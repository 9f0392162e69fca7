"""What a log-likelihood costs: python -m experiments.benchmarks.likelihood --workdir=runs/digits

speedup = wall time of a peer's way / wall time of `log_likelihood`, with the errors of both beside it, in one interleaved run:

score_sde's way (2011.13456, appendix D.2): SciPy's RK45 at 1e-5 around jitted functions, drift and divergence called apart, one step size for the
    whole batch, from t = eps to T; its divergence is the exact trace here, or one probe.
flow_matching's way: torchdiffeq's dopri5 at 1e-5 on the same MLP in PyTorch, one step size for the whole batch, the divergence by reverse mode, from
    t = eps to T (if torchdiffeq is installed: pip install torch torchdiffeq).

Errors are root mean squares over examples in nats: with the exact trace to the exact density at eps, or for networks to the coupled solve with a
fine tolerance; with one probe too, so that both have the probe's own error. Evaluations are means over examples, beside those that we take at the
peers' own tolerance, "at 1e-5".
"""

import importlib.util
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from scipy import integrate

from experiments import cli, runs
from experiments.benchmarks.timing import medians, report
from experiments.problems import eight_gaussians, turned_mixture
from models import MLP
from samplers import log_likelihood
from sde_lib import Denoiser, GaussianMixture, Linear

drift = jax.jit(lambda den, x, t: den.velocity(x, t))


@partial(jax.jit, static_argnames="exact")
def divergence(den, x, t, probe, exact: bool):
    jvp = jax.linearize(lambda x: den.velocity(x, t), x)[1]
    if not exact:
        return jnp.sum(probe * jvp(probe), range(1, x.ndim))
    dim = x[0].size
    columns = jax.vmap(lambda e: jvp(jnp.broadcast_to(e.reshape(x.shape[1:]), x.shape)))(jnp.eye(dim, dtype=x.dtype))
    return jnp.trace(columns.reshape(dim, len(x), dim), axis1=0, axis2=2)


def by_scipy(den, x, probe, exact: bool):
    """log p(x) [B] and evaluations, score_sde's way."""
    shape, sde = x.shape, den.sde

    def field(t, state):
        y = jnp.asarray(state[: x.size].reshape(shape), x.dtype)
        return np.concatenate([np.ravel(drift(den, y, t)), np.asarray(divergence(den, y, t, probe, exact))])

    start = np.concatenate([np.ravel(x), np.zeros(len(x))])
    solution = integrate.solve_ivp(field, (sde.eps, sde.T), start, "RK45", rtol=1e-5, atol=1e-5)
    end = solution.y[:, -1]
    return sde.prior_log_prob(jnp.asarray(end[: x.size].reshape(shape), x.dtype)) + end[x.size :], solution.nfev


def trained_mlp(gm: GaussianMixture, steps: int):
    """Parameters of a 3 x 256 MLP v(x, t), by flow matching on the linear path."""
    network, optimizer = MLP(width=256, depth=3), optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))

    @jax.jit
    def update(params, state, key):
        data_key, noise_key, time_key = jax.random.split(key, 3)
        x, noise, t = gm.sample(data_key, 512), jax.random.normal(noise_key, (512, 2)), jax.random.uniform(time_key, (512, 1))
        loss = lambda p: jnp.mean((network.apply(p, (1 - t) * x + t * noise, t[:, 0]) - noise + x) ** 2)
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = update(params, state, key)
    return network, params


def by_torch(params, x, probe, exact: bool):
    """log p(x) [B] and evaluations, flow_matching's way."""
    import torch
    from torchdiffeq import odeint

    as_tensor = lambda a: torch.from_numpy(np.array(a))
    layers = [params["params"][f"Dense_{i}"] for i in range(4)]
    weights = [(as_tensor(layer["kernel"]), as_tensor(layer["bias"])) for layer in layers]
    sde, p, calls = Linear(), as_tensor(probe), 0

    def network(x, t):
        h = torch.cat([x, t.expand(len(x), 1)], -1)
        for i, (kernel, bias) in enumerate(weights):
            h = torch.addmm(bias, h, kernel)
            h = torch.nn.functional.silu(h) if i < 3 else h
        return h

    def field(t, state):
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            v = network(x, t)
            row = lambda out, keep: torch.autograd.grad(out.sum(), x, retain_graph=keep)[0]
            change = sum(row(v[:, i], i == 0)[:, i] for i in range(2)) if exact else (row(v * p, False) * p).sum(-1)
        return v.detach(), change.detach()

    times = torch.tensor([sde.eps, sde.T])
    end, change = odeint(field, (as_tensor(x), torch.zeros(len(x))), times, rtol=1e-5, atol=1e-5, method="dopri5")
    return sde.prior_log_prob(jnp.asarray(end[-1].numpy())) + jnp.asarray(change[-1].numpy()), calls


def measure(name: str, den: Denoiser, x, theirs, truth, exact: bool, tolerance: float, repeats: int) -> dict:
    """A row. theirs(x, probe, exact) -> log p, evaluations. truth: log p [B]."""
    keys = jax.random.split(jax.random.key(1), len(x))
    probe = jax.vmap(lambda k: jax.random.rademacher(k, (1, *x.shape[1:]), x.dtype))(keys)[:, 0]
    options = {"divergence": "exact"} if exact else {"divergence": "hutchinson", "probes": 1, "key": keys}
    at = lambda tolerance: log_likelihood(den, x, rtol=tolerance, atol=tolerance, **options)
    ours, same = partial(at, tolerance), at(1e-5)
    rmse = lambda log_prob: float(jnp.sqrt(jnp.mean((log_prob - truth) ** 2)))
    result, (log_prob, nfev) = ours(), theirs(x, probe, exact)  # compile
    seconds = medians({"ours": lambda: ours().log_prob, "theirs": lambda: theirs(x, probe, exact)[0]}, repeats)
    return {
        "problem": name, "trace": "exact" if exact else "one probe", "tolerance": tolerance, "ms": 1e3 * seconds["ours"],
        "speedup": seconds["theirs"] / seconds["ours"], "RMSE": rmse(result.log_prob), "theirs": rmse(log_prob),
        "evaluations": float(result.nfe.mean()), "divergences": float(result.divergences.mean()),
        "at 1e-5": float(same.nfe.mean()), "divergences at 1e-5": float(same.divergences.mean()), "theirs, each": nfev,
    }  # fmt: skip


def main():
    f, rows = flags.FLAGS, []
    repeats, few = (1, 2) if f.quick else (9, None)

    def both(name, den, x, theirs, truth, tolerance, repeats=repeats):
        for exact in (True, False):
            rows.append(measure(name, den, x, theirs, truth, exact, tolerance if exact else 1e-2, repeats))

    for gm, name, batch, tolerance in ((eight_gaussians(), "8 gaussians", 512, 2e-3), (turned_mixture(64, 0.5), "64-D mixture", 64, 1e-2)):
        den, x = gm.denoiser(Linear()), gm.sample(jax.random.key(0), few or batch)
        both(f"{name} / score_sde", den, x, partial(by_scipy, den), gm.marginal_log_prob(Linear(), x, Linear().eps), tolerance)
    if importlib.util.find_spec("torchdiffeq"):
        network, params = trained_mlp(eight_gaussians(), 2 if f.quick else 2000)
        den = Denoiser(jax.tree_util.Partial(network.apply, params), Linear(), "velocity")
        x = eight_gaussians().sample(jax.random.key(0), few or 256)
        truth = log_likelihood(den, x, rtol=1e-6, atol=1e-6, adjoint=diffrax.ForwardMode()).log_prob
        both("MLP on 8 gaussians / torchdiffeq", den, x, partial(by_torch, params), truth, 1e-4)
        both("MLP on 8 gaussians / score_sde", den, x, partial(by_scipy, den), truth, 1e-4)
    if f.workdir:
        run = runs.load_run(f.workdir)
        den, batch = run.denoiser(), few or 8
        x = run.dataset.to_x(jax.random.split(jax.random.key(0), batch), run.dataset.values["test"][:batch])
        truth = log_likelihood(den, x, rtol=1e-5, atol=1e-5, adjoint=diffrax.ForwardMode()).log_prob
        both(f"{run.dataset.name} model / score_sde", den, x, partial(by_scipy, den), truth, 1e-4, min(repeats, 3))
    report(rows, f.out, "likelihood", quick=f.quick, workdir=f.workdir)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmarks", "Where the JSON goes.")
    flags.DEFINE_string("workdir", "", "A run to measure as well.")
    flags.DEFINE_bool("quick", False, "Tiny batches, to see that it runs.")
    cli.run(main)
