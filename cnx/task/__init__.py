"""What `run.py` can be asked for, one module each."""
