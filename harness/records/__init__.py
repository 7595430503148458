"""What runs left: ``--json`` summaries read back, the history of outcomes, and what can be told from many of them."""
