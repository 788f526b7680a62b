"""The training loop: run folder, checkpoints, averages, watchdog, loggers; it knows no model."""
