"""The commands, and what they are made of."""

import os
import signal
import sys

if sys.argv[0] == "-m":  # a command, whose imports take seconds: a stop has the same exit code as later (`cli.RESUMABLE`)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(75))
