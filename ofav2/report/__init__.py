"""A run folder as a page that a person looks at, and several runs side by side."""
