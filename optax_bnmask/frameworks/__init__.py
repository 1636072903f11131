"""Adapters from each framework's models to `analyze`; importing them imports no framework."""
