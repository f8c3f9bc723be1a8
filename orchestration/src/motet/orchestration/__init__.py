"""Workflows, runs and the `motet` command: the one room that knows all the others."""
