"""ESC-Bench: tasks on Still Life, painted, read by the oracle and scored."""
