"""The literature on pruning diffusion models as typed, checked records."""
