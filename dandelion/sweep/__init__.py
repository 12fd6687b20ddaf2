"""Many runs over a grid of settings, or over what a search asks for, side by side."""
