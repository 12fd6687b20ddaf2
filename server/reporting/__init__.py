"""What people read of a run: tables, plots, a line of state; all read from the ledger."""
