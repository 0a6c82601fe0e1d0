"""The pages in docs/ tell the truth: their examples print what they say, and no reason of the engine is missing."""

import inspect
import re

import pytest
import torch

import oddity
from oddity.geometry import connect, maps
from oddity.geometry.families import FAMILIES
from oddity.numerics import chain, ode
from oddity.statistics import brownian

from .pages import ROOT, run, text


@pytest.mark.slow
def test_the_page_of_failures_prints_what_it_says() -> None:
    run("docs/failures.md")


@pytest.mark.slow
def test_the_page_of_geometries_prints_what_it_says() -> None:
    run("docs/choosing.md")


def test_every_closed_family_is_on_the_page_of_geometries() -> None:
    page = text("docs/choosing.md")
    assert all(family.__name__ in page for family in FAMILIES)
    assert "Eighteen families" in page
    assert len(FAMILIES) == 18 + 1  # of torch.distributions, and one of ours


def test_the_readme_leads_to_both_pages() -> None:
    links = re.findall(r"\]\((docs/[^)#]*)\)", text("README.md"))
    assert {"docs/choosing.md", "docs/failures.md"} <= set(links)
    assert all((ROOT / link).exists() for link in links)


def test_every_reason_of_the_engine_is_on_the_page_of_failures() -> None:
    """Sentences made by the code itself, their numbers left out, against the sentences of the page."""
    of_chains = chain.sentences(torch.arange(4), torch.full((4,), 1e-3), 200)
    of_chains += chain.sentences(
        torch.tensor([chain.Status.STUCK, chain.Status.SPENT]), torch.full((2,), torch.inf), 200
    )
    of_paths = ode._sentences(torch.arange(4), torch.full((4,), 0.5), 10)
    of_walks = list(brownian._BECAUSE.values())
    of_verdicts = re.findall(r'why\[i\] = f?"(.*?)"', inspect.getsource(connect._Race.verdict))
    of_verdicts += re.findall(r'why\[i\] = f?"(.*?)"', inspect.getsource(maps.shoot))
    closed = oddity.Sphere(2).geodesic(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])).why
    page = re.sub(r"[`*\s]+", " ", text("docs/failures.md")).lower()
    for sentence in filter(None, [*of_chains, *of_paths, *of_walks, *of_verdicts, closed]):
        for words in re.split(r"\{.*?\}|[\d.e+-]*\d[\d.e+-]*", sentence):
            assert words.strip(" :").lower() in page, f"{sentence!r} is not on the page"
