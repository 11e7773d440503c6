"""The daemon's hands: sockets, files, clock and randomness. No decision is taken here."""
