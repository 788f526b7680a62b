"""The doors: training and inference from a command line."""
