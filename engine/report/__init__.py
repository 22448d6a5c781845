"""A run's page with charts."""
