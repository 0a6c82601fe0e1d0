"""Every law for every geometry, in double and in single precision."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from oddity import Manifold
from oddity.testing import LAWS, check_manifold

from .cases import NAMES, cases, points


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_law_holds(name: str, dtype: torch.dtype) -> None:
    M, d = cases(dtype)[name]
    for law in LAWS:
        check_manifold(M, points(d, dtype), [law])


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_a_used_geometry_is_the_same(name: str) -> None:
    M, d = cases(torch.float64)[name]
    z = points(d, torch.float64)

    def use(M: Manifold) -> Tensor:
        return torch.cat([M.acceleration(z[0], z[1]), M.scalar_curvature(z), M.geodesic(z[0], z[1]).length[None]])

    known = use(M)
    copies = [copy.deepcopy(M)]
    if name not in ("conformal", "into curved space"):  # their lambdas have no pickle
        copies.append(pickle.loads(pickle.dumps(M)))
    for other in copies:
        torch.testing.assert_close(use(other), known, rtol=0, atol=0)


def test_laws_are_named_in_the_message() -> None:
    with pytest.raises(ValueError, match="unknown law 'gravity'"):
        check_manifold(cases(torch.float64)["sphere"][0], points(2, torch.float64), ["gravity"])
    with pytest.raises(ValueError, match="N >= 3"):
        check_manifold(cases(torch.float64)["sphere"][0], points(2, torch.float64)[:1])
