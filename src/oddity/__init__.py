"""Oddity: the Riemannian geometry of the latent spaces of deep generative models.

A trained decoder bends its latent space. Oddity measures the bend (:func:`expected_metric`), and gives
distances, geodesics and maps under it. Importing this package is cheap: each public name is imported,
and PyTorch with it, when it is first used.

Examples
--------
>>> import torch, oddity
>>> M = oddity.Sphere(2)
>>> g = M.geodesic(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
>>> bool(g.converged), round(float(g.length), 3)
(True, 1.571)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from oddity._version import __version__

if TYPE_CHECKING:
    from oddity import testing as testing
    from oddity.app import datasets as datasets

_HOME = {
    name: home
    for home, names in {
        "oddity.geometry.connect": ["ChainSolver"],
        "oddity.geometry.curve": ["Geodesic"],
        "oddity.geometry.distances": ["Distances", "pairwise_distances"],
        "oddity.geometry.manifold": ["Manifold"],
        "oddity.geometry.maps": ["Trajectory"],
        "oddity.geometry.pullback": ["Pullback", "expected_metric"],
        "oddity.geometry.roadmap": ["Roadmap"],
        "oddity.geometry.spaces": ["Conformal", "Euclidean", "Hyperbolic", "Sphere", "TensorField"],
        "oddity.models.rbf": ["RBFPrecision"],
        "oddity.models.storage": ["SavedModel", "load_model", "save_model"],
        "oddity.models.training": ["fit_sigma_network", "fit_vae"],
        "oddity.models.vae": ["VAE", "GaussianDecoder", "SigmaNetwork"],
    }.items()
    for name in names
}

__all__ = [*sorted(_HOME), "__version__", "datasets"]


_MODULES = {"datasets": "oddity.app.datasets"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module 'oddity' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
