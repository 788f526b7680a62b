"""Images, shards, the caches beside them, and the training data made from them."""
