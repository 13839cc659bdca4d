"""Use extracted networks: classify image files, and evaluate class by class."""
