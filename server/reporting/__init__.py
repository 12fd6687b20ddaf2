"""What a run leaves for people: tables, plots, a line of state."""
