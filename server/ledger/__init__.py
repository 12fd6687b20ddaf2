"""The ledger of a run, the only truth about it, and the other files of its folder."""
