"""Entry point of `fp8pad` and `python -m fp8pad`; Ctrl-C prints one line, even while modules are being imported."""

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
