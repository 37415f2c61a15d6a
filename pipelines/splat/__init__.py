"""3D Gaussians: render, train, reconstruct from photos in one forward pass, read and write."""
