"""The learning rate of a round: of the settings, or of what committed rounds say of the step."""
