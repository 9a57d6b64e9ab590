"""Results of a record as tables and files."""
