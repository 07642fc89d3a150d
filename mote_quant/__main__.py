"""`python -m mote_quant` is `mote-quant`."""

from mote_quant.cli import main

if __name__ == "__main__":
    main()
