"""Variational autoencoders with the RBF precision network, and their three-stage training."""
