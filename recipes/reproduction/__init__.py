"""What recipes/reproduce.py is made of."""
