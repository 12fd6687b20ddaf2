"""A guard is a process of the site's own installation that alone reads the site's data."""
