"""Evidence from the program: how the traced function uses each parameter."""
