"""Calibration and quantisation, and the integer reference that defines every operator bit for bit."""
