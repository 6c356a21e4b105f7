"""The documentation, and the module that generates its reference."""
