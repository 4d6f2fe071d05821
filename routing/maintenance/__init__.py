"""What workers do for everybody, now and then."""
