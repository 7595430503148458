"""Programs that run inside guests: Python, standard library only, JSON lines out."""
