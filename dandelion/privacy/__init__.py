"""The operators' side of privacy: what a promise costs, and what data have paid."""
