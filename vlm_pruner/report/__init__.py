"""Tables for a terminal and pictures of what was kept."""
