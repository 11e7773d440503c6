"""The device process: small, on its own, and free of everything that only a node needs (row S4-1.1)."""
