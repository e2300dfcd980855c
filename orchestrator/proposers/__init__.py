"""One file a proposal method: history in, candidates out."""
