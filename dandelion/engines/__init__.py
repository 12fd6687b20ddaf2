"""Engines that run a federation: in this process, or in Flower's simulation."""
