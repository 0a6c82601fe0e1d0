"""Which solver when: a guide, and the settings in one place.

Every way below is reached from a manifold M; nothing else needs to be imported.

Between two points
------------------
``M.geodesic(a, b, init=Roadmap(M, codes))``
    The default choice. All pairs in one batch, each started from the straight line and from the shortest path over the
    codes, solved on a cheap sketch of the metric first (in two dimensions a table) and then on the metric itself:
    :class:`ChainSolver`. Build the roadmap once for a model; it knows the holes of the latent space, which a line
    cannot.
``M.geodesic(a, b)``
    The straight line is the only start. Right for near points, and where there are no codes. It may end in a
    longer valley: no local method can know.
``M.geodesic(a, b, init=curve)``
    To continue from a solution: of a neighbouring pair, of an earlier model, or of a solver of your own.
Closed forms
    ``Euclidean``, ``Sphere`` and ``Hyperbolic`` need no solver, and take none.
``scipy.integrate.solve_bvp``
    On z'' = ``M.acceleration(z, z')`` one pair at a time, in float64: an independent check to many digits, and
    what the paper used. It needs a start in the right valley and a regular metric, takes far longer, and gives up where
    a wall is steep. Example below.

Distances of many pairs
-----------------------
``pairwise_distances(M, z)``
    A graph over codes and waypoints first, exact geodesics where they are asked for, and the error of the rest
    measured. With ``method="exact"`` every pair is solved.

From a point and a velocity
---------------------------
``M.exp(z, v)``, ``M.shoot(z, v, t)``
    Runge and Kutta's method of order 5(4), one step size for each item. Shooting at a target is unstable over long
    distances; use ``M.log(a, b)``, which takes the initial velocity from the solved geodesic.

Settings
--------
:class:`ChainSolver` holds them. ``resolution`` is the one to know: smaller means more nodes where the curve is hard to
see. ``tolerance`` says when a chain is stationary. A curve that does not converge says ``why``, and which setting would
help.

Examples
--------
The boundary-value solver of SciPy agrees on a smooth surface:

>>> import numpy as np, torch, oddity
>>> from scipy.integrate import solve_bvp
>>> M = oddity.Pullback(lambda z: torch.cat([z, z.square().sum(-1, keepdim=True)], -1))
>>> a, b = torch.tensor([-1.0, 0.5]).double(), torch.tensor([1.0, 0.0]).double()
>>> def rhs(t, y):
...     z, v = torch.from_numpy(y.T.copy()).chunk(2, -1)
...     return torch.cat([v, M.acceleration(z, v)], -1).T.numpy()
>>> def ends(y0, y1):
...     return np.concatenate([y0[:2] - a.numpy(), y1[:2] - b.numpy()])
>>> t = torch.linspace(0, 1, 30).double()
>>> line = torch.cat([a[:, None] + (b - a)[:, None] * t, (b - a)[:, None].expand(2, 30)])
>>> found = solve_bvp(rhs, ends, t.numpy(), line.numpy(), tol=1e-6)
>>> g = M.geodesic(a, b)
>>> bool(np.allclose(found.sol(0.5)[:2], g(0.5).numpy(), atol=1e-4))
True
"""

from oddity.geometry.connect import ChainSolver
from oddity.geometry.roadmap import Roadmap

__all__ = ["ChainSolver", "Roadmap"]
