"""Train: `python train.py --help`."""

from escdiff.cli.train import main

if __name__ == "__main__":
    main()
