"""Cheap teachers: a seed in, structures worth learning from and their labels, and at the end a checked model, out."""
