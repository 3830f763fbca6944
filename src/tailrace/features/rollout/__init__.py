"""Rollout: from Pub/Sub to streams in steps, with a comparison, guards that go back, and a rehearsal."""
