"""From a matrix file to its cells."""
