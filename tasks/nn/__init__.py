"""Datasets, network families, training and structured pruning."""
