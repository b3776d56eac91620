"""Reads event files with TensorBoard's own reader, strict about checksums, and prints their scalars as JSON.

python event_files.py FOLDER
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# The reader of records in Python checks both checksums; the one in C++ that TensorFlow brings would skip what it cannot read.
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New


def records(path: Path) -> int:
    """How many whole records a file has; a wrong checksum raises."""
    reader, count = PyRecordReader_New(str(path)), 0
    while True:
        try:
            reader.GetNext()
        except Exception as end:
            if "OutOfRange" in type(end).__name__:
                return count
            raise
        count += 1


folder = Path(sys.argv[1])
counts = {path.name: records(path) for path in sorted(folder.iterdir())}
accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
accumulator.Reload()
scalars = {
    tag: [[event.step, event.value] for event in accumulator.Scalars(tag)]
    for tag in accumulator.Tags()["scalars"]
}
print(json.dumps({"records": counts, "scalars": scalars}))
