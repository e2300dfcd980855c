"""Measurements of the pipeline itself, with stages that do nothing or only wait."""
