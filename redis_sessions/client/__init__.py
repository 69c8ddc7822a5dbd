"""How operations reach Redis: the only package that imports redis-py."""
