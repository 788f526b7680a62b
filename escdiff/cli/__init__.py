"""The commands `train.py` and `infer.py`."""
