"""Generic solvers that know no geometry: derivatives, chains, block-tridiagonal systems, graphs."""
