"""Run the command `ofav2`: arguments, output and exit codes."""
