"""L-QKD: the session of a small device with its node (rows S4-A1.7 to S4-A1.17). Free of numpy on the device's side."""
