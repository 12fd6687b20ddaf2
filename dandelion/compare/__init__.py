"""Several methods from the same start: what each costs for the loss that it reaches."""
