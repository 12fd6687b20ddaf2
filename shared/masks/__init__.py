"""A fixed sparse mask: which addresses of a model a run trains, and how only these are moved."""
