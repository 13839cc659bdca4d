"""The shipped recipes: YAML files, read by `ofav2.config.recipe`; a package, so that an installation carries them."""
