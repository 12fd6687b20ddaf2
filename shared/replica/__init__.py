"""Copies of the model that follow the ledger with the same bits: replay, rounding, snapshots."""
