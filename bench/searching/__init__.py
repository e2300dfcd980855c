"""What the comparison of search methods is made of."""
