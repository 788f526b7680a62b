"""Commands that make training data; `python -m data_prep --help`."""
