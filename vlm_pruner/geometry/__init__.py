"""Where visual tokens are, in the picture and in the sequence: coordinates, spans, tiles, fits."""
