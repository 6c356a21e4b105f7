"""The producer: the command line, and what it needs to submit and to run a job by itself."""
