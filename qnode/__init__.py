"""The daemon: one process, one full node of a quantum-key-distribution network."""
