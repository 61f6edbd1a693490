"""A structure in; tasks whose frames show its surroundings, one way of exploring a file, out."""
