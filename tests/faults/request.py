"""What is interrupted: one request to the agent, in a process of its own. Needs nothing but the agent itself.

    python request.py provision BUNDLE MODEL      as an app or an installer asks
    python request.py by-service BUNDLE MODEL     the service has to make it
    python request.py prune QUOTA                 as ``refit-agent cache prune --max-size QUOTA``
    python request.py detect                      as ``refit-agent gpus --fresh``

Prints one JSON document: ``key`` and ``hit``, or the ``code`` of an error of ours with its text. Any other error is a
traceback and exit code 1, as it would be in the app.
"""

from __future__ import annotations

import json
import sys

from refit_agent import ensure_engine, paths
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import prune
from refit_agent.errors import RefitAgentError
from refit_agent.gpu.detect import detect


def main(what: str, *arguments: str) -> dict[str, object]:
    """Do what is asked, and say how it ended."""
    try:
        if what == "prune":
            return {"key": "", "hit": False, "removed": prune(Store(paths.home().cache), int(arguments[0]))}
        if what == "detect":
            detect(home=paths.home(), fresh=True)
            return {"key": "", "hit": False}
        with ensure_engine(*arguments, service=what == "by-service") as engine:
            return {"key": engine.key, "hit": engine.hit, "path": str(engine.path)}
    except RefitAgentError as error:
        return {"code": error.code, "text": str(error)}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
