"""The hot loops in C with their numpy twins; the twin is the specification, the test oracle and the fallback."""
