"""One module for each step, from the empty database on."""
