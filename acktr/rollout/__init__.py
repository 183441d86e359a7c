"""What is collected before an update: actions, steps, and the storage of both."""
