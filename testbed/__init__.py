"""The bench: puts a mail server in a world, loads it, watches it, and compares it with its model."""
