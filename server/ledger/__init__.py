"""The ledger and what stands beside it in a run folder: the only truth about a run."""
