"""What each framework does in its own way; a framework is imported once its user has done so."""
