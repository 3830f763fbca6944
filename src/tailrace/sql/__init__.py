"""What must outlive the log: a database behind owned tasks, its tables, its migrations."""
