"""From sifted bits to a secret key: estimation, reconciliation, verification, amplification and the length's proof."""
