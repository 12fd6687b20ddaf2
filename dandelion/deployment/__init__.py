"""Deployment: SuperLink, SuperNodes and their supervised programs on separate machines."""
