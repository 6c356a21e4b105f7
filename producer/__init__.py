"""The producer: it submits jobs, follows them and prints what they found."""
