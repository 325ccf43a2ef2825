"""The demo: small tasks of four families, made on the spot, and the probe trained for them."""
