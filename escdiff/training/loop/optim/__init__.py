"""Optimizer, learning rate and average of the weights."""
