"""Where visual tokens lie in the picture and in the sequence: coordinates, spans, tiles, fits."""
