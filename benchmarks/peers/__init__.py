"""Solvers side by side, each run as a script by the interpreter of its own environment."""
