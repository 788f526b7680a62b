"""Customize from one picture: `python infer.py --help`."""

from escdiff.cli.infer import main

if __name__ == "__main__":
    main()
