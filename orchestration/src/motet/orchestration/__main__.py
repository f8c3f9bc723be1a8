"""`python -m motet.orchestration` is the `motet` command."""

from motet.orchestration.cli import main

if __name__ == "__main__":
    main()
