"""The log: where streams live. `base` says what a log promises; `redis` and `memory` keep it."""
