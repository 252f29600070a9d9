"""What the commands share."""

import argparse
import sys
from collections.abc import Callable

from detrx.errors import user_message


def run_tool(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a command; a mistake of the user ends it with one line and exit status 1."""
    try:
        run(args)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
