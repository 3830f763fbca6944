"""Routes, authentication, limits, problems and health."""
