"""Build networks: the supernet of a recipe or record."""
