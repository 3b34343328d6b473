"""`python -m trio_passt`: the same as the command `trio-passt`."""

import sys

from trio_passt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
