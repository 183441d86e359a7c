"""What several test files share: environments, models, runs, processes."""
