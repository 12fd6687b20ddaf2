"""What every other folder builds on: errors, registry, files, flat parameters, sums, metrics."""
