"""What a person sees of a result: one HTML page, PNG figures, a comparison of two results."""
