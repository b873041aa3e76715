"""``python -m remit``: start again isolated, so that nothing this interpreter was made to load takes part.

``python -m`` has already run ``sitecustomize``, ``.pth`` files and whatever ``PYTHONPATH`` names. The new interpreter has
none of it: it is told the one directory that holds ``remit``.
"""

import os
import sys

from remit.cli import boot

if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.execv(sys.executable, [sys.executable, *boot.ISOLATED, "-c", boot.AGAIN, root, *sys.argv[1:]])
