"""Turns a candidate into an outcome: gate, train, compress, build, profile; Celery stands at the rim."""
