"""Many runs side by side: over a grid of settings, or over values that a search proposes."""
