"""The daemon: a thin shell round refit_agent."""
