"""`module:attribute` to an `Agent`, with errors of one line that say what to do."""

import importlib
import sys
import traceback
from pathlib import Path

from gateway.agents.sdk import Agent
from gateway.session.errors import CannotStart


class AgentNotLoadable(CannotStart):
    """There is no agent to run at that place; the text is one line, for the author."""


def load_agent(place: str) -> Agent:
    """The agent at `module:attribute`; the current directory is searched first.

    Raises:
        AgentNotLoadable: with the reason.
    """
    module_name, colon, attribute = place.partition(":")
    if not (module_name and colon and attribute):
        raise AgentNotLoadable(f"{place!r}: write module:attribute, such as my_module:agent")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only when it is the module itself, or a package around it, that is missing.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise AgentNotLoadable(_raised(module_name, error)) from error
        raise AgentNotLoadable(
            f"{place!r}: no module {module_name!r} in {here} or among the installed packages"
        ) from error
    except (Exception, SystemExit) as error:
        raise AgentNotLoadable(_raised(module_name, error)) from error
    found = getattr(module, attribute, None)
    if found is None:
        names = [name for name, value in vars(module).items() if isinstance(value, Agent)]
        hint = f"; it has {', '.join(map(repr, names))}" if names else ""
        raise AgentNotLoadable(f"{place!r}: {module_name!r} has no attribute {attribute!r}{hint}")
    if not isinstance(found, Agent):
        raise AgentNotLoadable(f"{place!r} is a {type(found).__name__}, not a gateway.agents.Agent")
    if not found.ready:
        raise AgentNotLoadable(f"{place!r} has no function: decorate one with `@{attribute}.run`")
    return found


def _raised(module_name: str, error: BaseException) -> str:
    """What the import raised, and where, in one line."""
    if isinstance(error, SyntaxError):
        where, text = f"{error.filename}:{error.lineno}", error.msg
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith("<frozen importlib")
        ]
        where, text = f"{frames[-1].filename}:{frames[-1].lineno}", str(error)
    line = " ".join(text.split())
    return f"importing {module_name!r} raised {type(error).__name__} at {where}: {line}"
