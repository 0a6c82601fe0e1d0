"""One small random decoder for each family of distributions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    Independent,
    Laplace,
    LogNormal,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
    VonMises,
)
from torch.nn.functional import normalize, softplus

from oddity import VonMisesFisher

COUNTS = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]


class Decoder(nn.Module):
    """Six outputs, of one or two or three numbers each, read as the parameters of a law."""

    def __init__(self, numbers: int, law: Callable[[Tensor], Distribution]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 6 * numbers), nn.Unflatten(1, (6, numbers)))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.7 * torch.randn(p.shape, generator=generator))
        self.law = law
        self.eval()

    def forward(self, z: Tensor) -> Distribution:
        return self.law(self.net(z))


def _pair(kind: Callable[..., Distribution]) -> Callable[[Tensor], Distribution]:
    return lambda y: kind(y[..., 0], softplus(y[..., 1]))


def _gaussian(y: Tensor) -> Distribution:
    lower = torch.diag_embed(softplus(y[..., 0])) + torch.diag_embed(y[:, 1:, 1], -1)
    return MultivariateNormal(y[..., 2], scale_tril=lower)


def _direction(y: Tensor) -> Distribution:
    return VonMisesFisher(normalize(y, dim=-1), torch.linalg.vector_norm(y, dim=-1))


DECODERS: dict[str, tuple[int, Callable[[Tensor], Distribution]]] = {
    "Normal": (2, lambda y: Independent(_pair(Normal)(y), 1)),
    "LogNormal": (2, _pair(LogNormal)),
    "Laplace": (2, _pair(Laplace)),
    "Bernoulli": (1, lambda y: Bernoulli(logits=y)),
    "Bernoulli by probability": (1, lambda y: Independent(Bernoulli(probs=y.sigmoid()), 2)),
    "Binomial": (1, lambda y: Binomial(5, logits=y)),
    "ContinuousBernoulli": (1, lambda y: ContinuousBernoulli(logits=y)),
    "Categorical": (3, lambda y: Categorical(logits=y)),
    "OneHotCategorical": (3, lambda y: OneHotCategorical(logits=y)),
    "Multinomial": (3, lambda y: Multinomial(5, logits=y)),
    "Poisson": (1, lambda y: Poisson(y.exp())),
    "Geometric": (1, lambda y: Geometric(logits=y)),
    "NegativeBinomial": (1, lambda y: NegativeBinomial(y.new_tensor(COUNTS)[:, None], logits=y)),
    "Exponential": (1, lambda y: Exponential(y.exp())),
    "Beta": (2, lambda y: Beta(*y.exp().unbind(-1))),
    "Dirichlet": (3, lambda y: Dirichlet(y.exp())),
    "VonMises": (2, _pair(VonMises)),
    "VonMisesFisher": (3, _direction),
    "Gamma": (2, lambda y: Gamma(*y.exp().unbind(-1))),
    "MultivariateNormal": (3, _gaussian),
    "Gumbel": (2, _pair(Gumbel)),  # no closed form here: by the divergence
}

NAMES = list(DECODERS)
CLOSED = NAMES[:-1]


def likelihood(name: str) -> Decoder:
    return Decoder(*DECODERS[name])
