"""Every read of the ledger: progress, results, failures."""
