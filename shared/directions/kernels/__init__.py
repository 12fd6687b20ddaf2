"""Fast kernels for the families of directions: each module is imported when a tensor needs it."""
