"""Metrics of a run: one JSON object a line in log.jsonl, appended to and never truncated, and TensorBoard events beside it."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from experiments import hosts


class MetricWriter:
    """Use as a context manager. Of several processes the first alone writes."""

    def __init__(self, workdir: str | Path):
        self.writes = hosts.writes()
        if not self.writes:
            return
        self.file = open(Path(workdir) / "log.jsonl", "a+")
        self.file.seek(0)
        if (self.file.read() or "\n")[-1] != "\n":
            self.file.write("\n")  # a kill left half a line
        self.board = SummaryWriter(str(workdir), write_to_disk=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.writes:
            self.file.close()
            self.board.close()

    def write(self, step: int, **values: float) -> None:
        if not self.writes:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
