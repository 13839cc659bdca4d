"""Find, merge and check recipes: the schema, and the range of every value."""
