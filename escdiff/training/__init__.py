"""Trainings as Lightning modules, and the one loop that runs them (`escdiff.training.loop.run.train`)."""
