"""Training of the concept encoder."""
