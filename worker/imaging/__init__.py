"""From the bytes of a file to upright sRGB pixels. Uses nothing of ours but the ground floor."""
