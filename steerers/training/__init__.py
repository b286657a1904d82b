"""Dictionaries for a decoder's streams, trained while it reads texts."""
