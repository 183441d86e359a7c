"""The algorithm, of parts that own their state; ``algorithm.py`` builds them and calls them in order."""
