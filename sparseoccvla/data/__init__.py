"""Data sets and bags in, contracts out."""
