"""Settings from the command line, TOML files and presets."""
