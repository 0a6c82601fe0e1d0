"""Every law for every geometry, in double and in single precision."""

import pytest
import torch

from oddity.testing import LAWS, check_manifold

from .cases import NAMES, cases, points


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_law_holds(name: str, dtype: torch.dtype) -> None:
    M, d = cases(dtype)[name]
    for law in LAWS:
        check_manifold(M, points(d, dtype), [law])


def test_laws_are_named_in_the_message() -> None:
    with pytest.raises(ValueError, match="unknown law 'gravity'"):
        check_manifold(cases(torch.float64)["sphere"][0], points(2, torch.float64), ["gravity"])
    with pytest.raises(ValueError, match="N >= 3"):
        check_manifold(cases(torch.float64)["sphere"][0], points(2, torch.float64)[:1])
