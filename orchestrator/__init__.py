"""Decides what to try next and remembers everything; knows no queue, no board and no command line."""
