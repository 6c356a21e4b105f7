"""The ledger: what is done and what is left, in SQL."""
