"""``python -m ascend_gguf.desk`` is ``ascend-gguf``."""

import sys

from ascend_gguf.desk.cli import main

if __name__ == "__main__":
    sys.exit(main())
