"""`flashace distill`: a seed and a teacher in, a checked student out."""

SHAPE = ("size", "r_max", "hidden_dim", "num_channels", "num_layers", "l_max", "correlation", "device", "dtype", "compile")
