"""One file a board driver."""
