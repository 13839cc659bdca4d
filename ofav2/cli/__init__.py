"""The command `ofav2`: what it takes, what it prints, and its exit codes."""
