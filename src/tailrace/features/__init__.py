"""Features on top of the core; each can be switched off, none imports another."""
