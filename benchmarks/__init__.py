"""What the package costs, measured beside what else a user could run; not part of the package."""
