"""Runs: jobs with a status in SQL, events in the log, a producer that is known to live, and an end that is told."""
