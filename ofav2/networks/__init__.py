"""Networks: the supernet of a recipe or record."""
