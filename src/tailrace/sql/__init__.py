"""What must outlive the log: engine, models, migrations."""
