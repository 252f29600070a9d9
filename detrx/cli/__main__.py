"""`python -m detrx.cli COMMAND ...`"""

import importlib
import pkgutil
import sys

from detrx import cli


def main(argv: list[str]) -> int | None:
    """Run a command with its arguments and return its exit status."""
    commands = sorted(module.name for module in pkgutil.iter_modules(cli.__path__) if not module.name.startswith("_"))
    usage = f"usage: python -m detrx.cli COMMAND ..., with one of {', '.join(commands)}"
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    if not argv or argv[0] not in commands:
        sys.exit(f"error: {f'there is no command {argv[0]}' if argv else 'no command given'}; {usage}")
    sys.argv[0] = f"detrx.cli {argv[0]}"  # the program name in its usage text
    return importlib.import_module(f"detrx.cli.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
