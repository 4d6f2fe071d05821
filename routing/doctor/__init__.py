"""A live platform as values, and what is wrong with it."""
