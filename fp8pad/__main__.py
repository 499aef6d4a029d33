"""Where the command `fp8pad` and `python -m fp8pad` begin: Ctrl-C is one line, also while modules are imported."""

import sys


def main() -> None:
    """Run the command line; see `fp8pad.cli.main`."""
    try:
        from fp8pad.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
