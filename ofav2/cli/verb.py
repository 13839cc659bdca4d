"""Define a verb of the command. Each has a module here, which exports it as `VERB`.

Such a module imports only what parsing needs. The packages that do the work are imported when the verb runs: torch
takes seconds to load, and `--help` should not wait for it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb of the command."""

    name: str
    """What is typed after `ofav2`."""
    summary: str
    """One sentence for the list of verbs, and for the top of the verb's help."""
    epilog: str
    """Worked examples, and what to run next."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the verb's arguments to its parser."""
    run: Callable[[argparse.Namespace], None]
    """Calls public functions, shows what they return, and says what to run next."""
