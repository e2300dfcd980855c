"""Timings of the pipeline: what a lab's studies ask of database, queue and reports."""
