"""Ground floor: errors, registry, files, flat parameters, sums and metrics for everyone."""
