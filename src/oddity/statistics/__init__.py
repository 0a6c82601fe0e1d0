"""Statistics in a curved latent space: means, densities, walks. Every entry takes a manifold."""
