"""The files here are wrong on purpose: ``test_scenario_load.py`` reads them, and nothing collects them."""

collect_ignore_glob = ["*.yaml"]
