"""The seam between the stack and whatever computes: see `base`."""
