"""Sums of numbers that nobody sees: Shamir shares of vectors, sealed for a committee of sites."""
