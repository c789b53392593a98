"""``python -m refit_agent``: the command line."""

from refit_agent.cli.main import run

if __name__ == "__main__":
    run()
