"""Measuring a running network: latency histograms, samples of every node, energy by a stated model."""
