"""What any part of the package may use and that knows of none: files, tables, the terminal."""
