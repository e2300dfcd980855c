"""Owns boards: takes finished images, flashes, runs and measures. Stands alone; never compiles a network."""
