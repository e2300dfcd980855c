"""One file a meter driver."""
