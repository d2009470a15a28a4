"""What recipes/train.py is made of: losses, pictures, checkpoints."""
