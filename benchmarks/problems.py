"""What every solver is asked: one trained decoder and one list of pairs of codes for each latent dimension.

A problem is an ``.npz`` of plain arrays, so that a peer in another environment, or another framework, reads the
same numbers and needs nothing of Oddity.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import oddity
from benchmarks.peers.plain import PlainDecoder

WORK = Path(__file__).parent.parent / "build" / "bench"
PAIRS = 256


def problem(d: int, *, quick: bool = False) -> Path:
    """The problem in d dimensions: trained at the first call, then loaded."""
    folder = WORK / ("quick" if quick else "problems") / f"d{d}"
    if not (folder / "problem.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        vae, codes = _train(d, quick)
        oddity.save_model(folder / "model", vae, codes=codes)
        write(folder / "problem.npz", vae.decoder, codes)
    return folder


def write(file: Path, decoder: oddity.GaussianDecoder, codes: Tensor) -> None:
    """Decoder, pairs, and a few values of the decoder for a check by whoever builds it again."""
    numbers = arrays(decoder) | _pairs(codes, PAIRS)
    with torch.no_grad():
        values = torch.cat(decoder(torch.as_tensor(numbers["a"])), -1).numpy()
    np.testing.assert_allclose(PlainDecoder(numbers)(torch.as_tensor(numbers["a"])).numpy(), values, rtol=1e-4)
    np.savez(file, **numbers, values=values)


def _train(d: int, quick: bool) -> tuple[oddity.VAE, Tensor]:
    """The paper's decoder on the digits 0, 1 and 2, at the defaults; something small for a smoke test."""
    if quick:
        X, _ = oddity.datasets.load("digits", classes=[0, 1, 2], per_class=100)
        vae = oddity.fit_vae(X, latent_dim=d, epochs=100, n_centres=16)
    else:
        X, _ = oddity.datasets.load("mnist5k", classes=[0, 1, 2])
        vae = oddity.fit_vae(X, latent_dim=d)
    return vae, vae.encode(torch.as_tensor(X))


def arrays(decoder: oddity.GaussianDecoder) -> dict[str, np.ndarray]:
    """The decoder in plain arrays: dense layers ``W0, b0, ...``, and the RBF network of the precision."""
    assert isinstance(decoder.scale, oddity.RBFPrecision)
    layers = [layer for layer in decoder.mean_net.modules() if isinstance(layer, nn.Linear)]
    plain = {f"W{i}": layer.weight for i, layer in enumerate(layers)}
    plain |= {f"b{i}": layer.bias for i, layer in enumerate(layers)}
    scale = decoder.scale
    plain |= {"centres": scale.centres, "bandwidths": scale.bandwidths, "weight": scale.weight, "zeta": scale.zeta}
    numbers = {name: value.detach().cpu().numpy() for name, value in plain.items()}
    # exp(-x) of a larger x is a subnormal number in float32, which slows a processor down for every solver alike
    return numbers | {"largest_exponent": np.float32(-0.45 * math.log(torch.finfo(torch.float32).tiny))}


def _pairs(codes: Tensor, count: int) -> dict[str, np.ndarray]:
    """Pairs of different codes, drawn once and for all."""
    rng = np.random.default_rng(0)
    i, j = np.array([rng.choice(len(codes), 2, replace=False) for _ in range(count)]).T
    z = codes.numpy()
    return {"a": z[i], "b": z[j], "codes": z}
