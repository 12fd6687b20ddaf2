"""Attacks that read data out of what a site sends: without privacy, and with it."""
