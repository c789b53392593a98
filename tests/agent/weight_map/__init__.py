"""Tests of refit_agent.weight_map, one file for each of its subjects."""
