"""`tailrace rollout rehearse`: the whole move, there and back, on real processes and a Redis of its own."""
