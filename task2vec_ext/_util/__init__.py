"""Helpers that know nothing of tasks: files, file names, tables, the terminal."""
