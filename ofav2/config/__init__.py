"""Recipes: their schema, how they are found, merged and checked, and the range of every value."""
