"""Write sub-networks as files that run elsewhere, and read them back."""
