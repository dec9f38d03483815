"""A user's own lists, in every format they come in: see README.md in this folder."""
