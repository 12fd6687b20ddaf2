"""Training: the oracle of a model, the scope that is trained, and the data of run and sites."""
