"""SuperLink, SuperNodes and their programs on separate machines."""
