"""Records of the suite, lines of JSON: how they are read, and which one the others are compared with."""

import json


def read(path):
    """Return the records of a file, in order; a line that is none is an error."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            _ = record["status"], record["peer"], record["work"]
            records.append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path.name}, line {number}, is no record: {error}") from None
    return records


def ours(records):
    """Return the record that the others are compared with: the first right one of this library."""
    return next((r for r in records if r["package"] == "cusink" and r["status"] == "right" and r["seconds"]), None)
