"""From a quantised graph to C and to a firmware image."""
