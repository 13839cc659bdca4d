"""Search any space of genes for the best trade-offs between a measured metric and exact costs."""
