"""May we release? A policy says what must hold; summaries and the history say what was seen."""
