"""Sources listed into the ledger: by one process at a time, in batches, also from lists in files."""
