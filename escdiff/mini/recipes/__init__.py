"""Trainings of the bundled model's parts: CLIP, VAE, U-Net, oracle."""
