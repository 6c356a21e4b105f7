"""Bytes of a file to upright sRGB pixels."""
