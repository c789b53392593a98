"""``python -m refit_service``: the same as ``refit-agent serve``."""

import sys

from refit_agent.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
