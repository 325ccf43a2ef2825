"""The demo: 25 small tasks of four families, made on the spot and embedded with the tiny probe."""
