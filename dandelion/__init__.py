"""The operator's side: command line, engines, pictures, benchmarks."""
