"""Training of one customization method on its references."""
