"""The shipped recipes: complete YAML files, read by `ofav2.recipe`. A package, so that an installation carries them."""
