"""From the record to a tidy table, figures and tables. Needs neither a GPU nor torch."""
