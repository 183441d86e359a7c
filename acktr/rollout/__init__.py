"""Collection of the samples of an update: actions, steps, and the storage of both."""
