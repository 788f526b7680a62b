"""Training data from Still Life: arrays, swap triples, framings and cached tokens."""
