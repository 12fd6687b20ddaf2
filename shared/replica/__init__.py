"""A model that follows the ledger: replay, rounding and snapshots with the same bits everywhere."""
