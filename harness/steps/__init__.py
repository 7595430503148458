"""The verbs that a scenario's ``drive`` can use. One file per feature; found through entry points."""
