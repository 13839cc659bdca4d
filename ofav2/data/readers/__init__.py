"""Read data sets: arrays in memory and folders of image files."""
