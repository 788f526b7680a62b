"""Metrics of pictures as `torchmetrics.Metric`s, over models by configuration."""
