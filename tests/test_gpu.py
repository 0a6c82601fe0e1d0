"""The same answers on a CUDA device as on the processor. Skipped, and said so, where there is none."""

import copy

import pytest
import torch
from torch import nn

import oddity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine"),
]


@pytest.fixture(scope="module", params=[2, 10], ids=["d=2", "d=10"])
def case(request):
    """A decoder with the paper's noise around random codes, and the codes."""
    d = request.param
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(600, d, generator=generator)
    net = nn.Sequential(nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, 50), nn.Sigmoid())
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    decoder = oddity.GaussianDecoder(net, oddity.RBFPrecision.from_codes(codes, 50, n_centres=16))
    return decoder.eval().requires_grad_(False), codes


def both(decoder):
    """The expected metric on the processor and on the device."""
    return oddity.expected_metric(decoder), oddity.expected_metric(copy.deepcopy(decoder).cuda())


def test_the_metric_is_the_same_and_stays_on_its_device(case):
    decoder, codes = case
    here, there = both(decoder)
    G = there.metric(codes.cuda())
    assert G.is_cuda
    assert G.dtype == codes.dtype
    torch.testing.assert_close(G.cpu(), here.metric(codes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["line", "roadmap"])
def test_a_batch_of_geodesics_is_the_same(case, start):
    decoder, codes = case
    here, there = both(decoder)
    a, b = codes[:256], codes[256:512]
    g = solved(here, codes, a, b, start)
    h = solved(there, codes.cuda(), a.cuda(), b.cuda(), start)
    assert h.points.is_cuda
    assert h.length.is_cuda
    assert h.points.shape[0] == 256
    sure = g.converged & h.converged.cpu()
    assert sure.float().mean() > 0.9
    # rounding may send a pair to another valley, never many of them
    same = ((h.length.cpu() / g.length - 1).abs() < 1e-3)[sure]
    assert same.float().mean() > 0.97


def test_distances_on_the_device_are_symmetric_and_zero_to_the_same_point(case):
    decoder, codes = case
    _, there = both(decoder)
    a, b = codes[:8].cuda(), codes[8:16].cuda()
    assert bool((there.dist(a, a) == 0).all())
    error = (there.dist(a, b) - there.dist(b, a)).abs() / there.dist(a, b)
    assert float(error.detach().median()) < 1e-4


def solved(M, codes, a, b, start):
    return M.geodesic(a, b, init=oddity.Roadmap(M, codes) if start == "roadmap" else None)
