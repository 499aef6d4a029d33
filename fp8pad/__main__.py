"""`python -m fp8pad` is `fp8pad`."""

from fp8pad.cli.main import main

if __name__ == "__main__":
    main()
