"""Pages, figures and significance, shared by all evaluations."""
