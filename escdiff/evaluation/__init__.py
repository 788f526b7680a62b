"""ESC-Bench: what the model and the encoder do on Still Life, judged by the oracle."""
