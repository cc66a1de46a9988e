"""Lowering rules by subject; the folder is scanned."""
