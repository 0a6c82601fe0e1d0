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

if TYPE_CHECKING:  # what type checkers and editors see; at run time the same names come on first use
    from oddity import solvers as solvers
    from oddity import testing as testing
    from oddity.app import datasets as datasets
    from oddity.geometry.connect import ChainSolver as ChainSolver
    from oddity.geometry.curve import ConvergenceWarning as ConvergenceWarning
    from oddity.geometry.curve import Geodesic as Geodesic
    from oddity.geometry.distances import Distances as Distances
    from oddity.geometry.distances import pairwise_distances as pairwise_distances
    from oddity.geometry.ensemble import ensemble_metric as ensemble_metric
    from oddity.geometry.ensemble import independent_members_energy as independent_members_energy
    from oddity.geometry.fisher import fisher_metric as fisher_metric
    from oddity.geometry.manifold import Manifold as Manifold
    from oddity.geometry.maps import Trajectory as Trajectory
    from oddity.geometry.pullback import Pullback as Pullback
    from oddity.geometry.pullback import expected_metric as expected_metric
    from oddity.geometry.roadmap import Roadmap as Roadmap
    from oddity.geometry.spaces import Conformal as Conformal
    from oddity.geometry.spaces import Euclidean as Euclidean
    from oddity.geometry.spaces import Hyperbolic as Hyperbolic
    from oddity.geometry.spaces import Sphere as Sphere
    from oddity.geometry.spaces import TensorField as TensorField
    from oddity.geometry.uncertainty import LengthUncertainty as LengthUncertainty
    from oddity.geometry.uncertainty import expected_norm as expected_norm
    from oddity.geometry.uncertainty import length_uncertainty as length_uncertainty
    from oddity.geometry.uncertainty import metric_variance as metric_variance
    from oddity.geometry.uncertainty import squared_speed_variance as squared_speed_variance
    from oddity.models.blend import EntropyBlend as EntropyBlend
    from oddity.models.conv_rbf import ConvRBFPrecision as ConvRBFPrecision
    from oddity.models.distance_scale import DistanceScale as DistanceScale
    from oddity.models.ensemble import Ensemble as Ensemble
    from oddity.models.ensemble import fit_ensemble as fit_ensemble
    from oddity.models.ensemble import load_ensemble as load_ensemble
    from oddity.models.ensemble import save_ensemble as save_ensemble
    from oddity.models.rbf import RBFPrecision as RBFPrecision
    from oddity.models.storage import SavedModel as SavedModel
    from oddity.models.storage import load_model as load_model
    from oddity.models.storage import save_model as save_model
    from oddity.models.training import fit_sigma_network as fit_sigma_network
    from oddity.models.training import fit_vae as fit_vae
    from oddity.models.uncertain import UncertainDecoder as UncertainDecoder
    from oddity.models.uncertain import add_uncertainty as add_uncertainty
    from oddity.models.vae import VAE as VAE
    from oddity.models.vae import GaussianDecoder as GaussianDecoder
    from oddity.models.vae import SigmaNetwork as SigmaNetwork
    from oddity.numerics.spherical import VonMisesFisher as VonMisesFisher
    from oddity.statistics.brownian import DataSupport as DataSupport
    from oddity.statistics.brownian import Walk as Walk
    from oddity.statistics.brownian import brownian_motion as brownian_motion
    from oddity.statistics.brownian import heat_kernel_samples as heat_kernel_samples
    from oddity.statistics.brownian import manifold_samples as manifold_samples
    from oddity.statistics.clustering import GeodesicKMeans as GeodesicKMeans
    from oddity.statistics.clustering import GeodesicKMedoids as GeodesicKMedoids
    from oddity.statistics.interpolation import Analogy as Analogy
    from oddity.statistics.interpolation import Interpolation as Interpolation
    from oddity.statistics.interpolation import analogy as analogy
    from oddity.statistics.interpolation import interpolate as interpolate
    from oddity.statistics.land import LAND as LAND
    from oddity.statistics.means import FrechetMean as FrechetMean
    from oddity.statistics.means import frechet_mean as frechet_mean
    from oddity.statistics.stability import Stability as Stability
    from oddity.statistics.stability import stability as stability
    from oddity.statistics.tangent import TangentPCA as TangentPCA

_HOME = {
    name: home
    for home, names in {
        "oddity.geometry.connect": ["ChainSolver"],
        "oddity.geometry.curve": ["ConvergenceWarning", "Geodesic"],
        "oddity.geometry.distances": ["Distances", "pairwise_distances"],
        "oddity.geometry.ensemble": ["ensemble_metric", "independent_members_energy"],
        "oddity.geometry.fisher": ["fisher_metric"],
        "oddity.geometry.manifold": ["Manifold"],
        "oddity.geometry.maps": ["Trajectory"],
        "oddity.geometry.pullback": ["Pullback", "expected_metric"],
        "oddity.geometry.roadmap": ["Roadmap"],
        "oddity.geometry.spaces": ["Conformal", "Euclidean", "Hyperbolic", "Sphere", "TensorField"],
        "oddity.geometry.uncertainty": [
            "LengthUncertainty",
            "expected_norm",
            "length_uncertainty",
            "metric_variance",
            "squared_speed_variance",
        ],
        "oddity.models.blend": ["EntropyBlend"],
        "oddity.models.conv_rbf": ["ConvRBFPrecision"],
        "oddity.models.distance_scale": ["DistanceScale"],
        "oddity.models.ensemble": ["Ensemble", "fit_ensemble", "load_ensemble", "save_ensemble"],
        "oddity.models.rbf": ["RBFPrecision"],
        "oddity.models.storage": ["SavedModel", "load_model", "save_model"],
        "oddity.models.training": ["fit_sigma_network", "fit_vae"],
        "oddity.models.uncertain": ["UncertainDecoder", "add_uncertainty"],
        "oddity.models.vae": ["VAE", "GaussianDecoder", "SigmaNetwork"],
        "oddity.numerics.spherical": ["VonMisesFisher"],
        "oddity.statistics.brownian": [
            "DataSupport",
            "Walk",
            "brownian_motion",
            "heat_kernel_samples",
            "manifold_samples",
        ],
        "oddity.statistics.clustering": ["GeodesicKMeans", "GeodesicKMedoids"],
        "oddity.statistics.interpolation": ["Analogy", "Interpolation", "analogy", "interpolate"],
        "oddity.statistics.land": ["LAND"],
        "oddity.statistics.means": ["FrechetMean", "frechet_mean"],
        "oddity.statistics.stability": ["Stability", "stability"],
        "oddity.statistics.tangent": ["TangentPCA"],
    }.items()
    for name in names
}

_MODULES = {"datasets": "oddity.app.datasets", "solvers": "oddity.solvers", "testing": "oddity.testing"}

__all__ = [*sorted(_HOME), "__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module 'oddity' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
