"""How long things take: the harness beside a plain script and beside its peers. Run as ``python -m bench``."""
