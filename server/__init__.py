"""The server's side: ledger, strategy, snapshots, evaluation."""
