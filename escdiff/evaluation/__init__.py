"""Judging: ESC-Bench, the comparison of methods, the field's protocols and metrics, studies."""
