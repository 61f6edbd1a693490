"""The command line for whoever starts Python itself, as torchrun does: `python -m flashace`."""

from flashace.cli.main import main

if __name__ == "__main__":
    main(prog_name="flashace")
