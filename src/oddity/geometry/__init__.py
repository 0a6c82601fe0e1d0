"""Riemannian manifolds in one chart, their algebra, and the curves on them."""
