"""Fine-tune extracted networks."""
