"""The record: an MLflow store, the single source of truth about trials."""
