"""Fetching the released files: what there is, how it is transferred, how it is put in place."""
