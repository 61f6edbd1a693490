"""A student, its teacher and a structure in; a property of matter by both, and how far they are apart, out. A file for each property."""
