"""Pages about a run for people who were not there: an HTML report and a model card."""
