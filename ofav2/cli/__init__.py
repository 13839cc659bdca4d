"""Run the command `ofav2`: a module per verb, and `console`, the only one that prints."""
