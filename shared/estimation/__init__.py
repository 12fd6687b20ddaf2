"""Losses at perturbed parameters, and gradient estimates made of their differences."""
