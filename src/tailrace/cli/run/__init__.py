"""`tailrace exec`: any process as a run."""
