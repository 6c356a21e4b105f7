"""Every write to the ledger: jobs, what they list, what comes next, leases and results."""
