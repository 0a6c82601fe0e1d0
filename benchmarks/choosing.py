"""What each geometry costs on one small decoder: ``python -m benchmarks.choosing``, the table of docs/choosing.md.

Digits 0, 1, 2 of scikit-learn (537 images of 8 x 8), the VAE of the library's defaults, d = 2, D = 64; processor time
of one thread.
"""

import time
from collections.abc import Callable

import torch
from torch.distributions import Bernoulli, Gumbel, Normal, Poisson

import oddity

POINTS, PAIRS, MEMBERS = 256, 32, 5


def main() -> None:
    torch.set_num_threads(1)
    X, _ = oddity.datasets.load("digits", classes=[0, 1, 2])
    vae = oddity.fit_vae(X)
    z = vae.encode(torch.as_tensor(X))
    print("| geometry | G(z), µs a point | a geodesic, ms | converged |\n|---|---|---|---|")
    for name, M in geometries(vae, X, z).items():
        metric = seconds(lambda M=M: M.metric(z[:POINTS]), 5) / POINTS
        roads = oddity.Roadmap(M, z)
        a, b = z[:PAIRS], z[-PAIRS:]
        g = M.geodesic(a, b, init=roads)
        curve = seconds(lambda M=M, roads=roads, a=a, b=b: M.geodesic(a, b, init=roads), 1) / PAIRS
        print(f"| {name} | {1e6 * metric:.1f} | {1e3 * curve:.3g} | {int(g.converged.sum())} of {PAIRS} |", flush=True)


def geometries(vae: oddity.VAE, X: object, z: torch.Tensor) -> dict[str, oddity.Manifold]:
    decoder = vae.decoder
    net = decoder.mean_net
    added = oddity.add_uncertainty(net, z, X)
    sigma = oddity.fit_sigma_network(vae, X).decoder
    members = [member(z, torch.as_tensor(X), seed) for seed in range(MEMBERS)]
    centre, spread = z.mean(0), z.std()

    def binary(z: torch.Tensor) -> Bernoulli:
        return Bernoulli(probs=net(z).clamp(1e-3, 1 - 1e-3))

    def near(z: torch.Tensor) -> torch.Tensor:
        return 1 + ((z - centre) / spread).square().sum(-1)

    return {
        "Euclidean()": oddity.Euclidean(),
        "Conformal(scale)": oddity.Conformal(near),
        "TensorField(G)": oddity.TensorField(lambda z: near(z)[..., None, None] ** 2 * torch.eye(2)),
        "expected_metric(mean)": oddity.expected_metric(net),
        "the same, without its closed form": oddity.expected_metric(lambda z: net(z)),
        "expected_metric(decoder), RBF precision": oddity.expected_metric(decoder),
        "expected_metric(add_uncertainty(mean))": oddity.expected_metric(added),
        "expected_metric(decoder), σ-network": oddity.expected_metric(sigma),
        f"ensemble_metric of {MEMBERS} means": oddity.ensemble_metric(members),
        "fisher_metric, Normal": oddity.fisher_metric(lambda z: Normal(decoder.mean(z), decoder.std(z))),
        "fisher_metric, Poisson": oddity.fisher_metric(lambda z: Poisson(0.1 + net(z))),
        "fisher_metric, Bernoulli": oddity.fisher_metric(binary),
        "the same with EntropyBlend": oddity.fisher_metric(oddity.EntropyBlend(binary, z)) + 0.1 * oddity.Euclidean(),
        "fisher_metric, Gumbel (by the divergence)": oddity.fisher_metric(lambda z: Gumbel(net(z), decoder.std(z))),
    }


def member(z: torch.Tensor, X: torch.Tensor, seed: int) -> torch.nn.Module:
    """One more decoder for the same codes, with layers as the VAE's."""
    torch.manual_seed(seed)
    layers = torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64)
    net = torch.nn.Sequential(*layers, torch.nn.Sigmoid())
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        (net(z) - X).square().mean().backward()
        optimiser.step()
    return net.eval().requires_grad_(False)


def seconds(call: Callable[[], object], times: int) -> float:
    """Processor time of a call that has run before."""
    call()
    begin = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begin) / times


if __name__ == "__main__":
    main()
