"""Error correction between two parties, behind one interface that counts every leaked bit."""
