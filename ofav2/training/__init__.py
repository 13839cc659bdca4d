"""Train a supernet through its phases."""
