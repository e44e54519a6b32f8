"""What the families of models have in common, and how each is configured and drawn."""
