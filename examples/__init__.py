"""What the library is for, at work; run from a clone, not part of what is installed."""
