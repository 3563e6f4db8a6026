"""The benchmark set: ``python -m pipeline.bench.suite cpu`` (or ``cuda``) measures it and writes a table.

Each line of the set runs in its own process, so that its peak memory is its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from tqdm import tqdm

from pipeline.errors import UserError, run

FOLDER = Path("results/bench")
DATA = yaml.safe_load(Path(__file__).with_name("suite.yaml").read_text(encoding="utf-8"))
SETS = {name: [line.format(**DATA["words"]) for line in lines] for name, lines in DATA["sets"].items()}
COLUMNS = DATA["columns"]


def main() -> None:
    """Measure the named set; write FOLDER/NAME.jsonl and a table, FOLDER/NAME.md, after each run.

    Raises UserError if one failed, once all have been tried.
    """
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in SETS:
        raise UserError(f"usage: python -m pipeline.bench.suite {'|'.join(SETS)}")
    records = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for line in tqdm(SETS[name], desc="benchmarks", unit=" runs"):
        done = subprocess.run([sys.executable, "-m", "pipeline.bench", *line.split()], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            record = {"failed": last.removeprefix("error: ")}
        else:
            record = json.loads(done.stdout.splitlines()[-1])
        records.append({"command": line, **record})
        for kind, text in (("jsonl", "".join(f"{json.dumps(record)}\n" for record in records)), ("md", table(records))):
            part = FOLDER / f"{name}.{kind}.part"  # not `files.replacing`: that needs pandas, the benchmark does not
            part.write_text(text)
            part.replace(FOLDER / f"{name}.{kind}")
    print(table(records))
    if failed := sum("failed" in record for record in records):
        raise UserError(f"{failed} of {len(records)} runs failed: the table has the reasons")


def table(records: list[dict]) -> str:
    """The records as a Markdown table; a measure that a record lacks is blank."""
    rows = [["command", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for record in records:
        failed = f" failed: {record['failed']}" if "failed" in record else ""
        found = [(record.get(field), unit, form) for field, unit, form in COLUMNS.values()]
        cells = ["" if value is None else format(value / unit, form) for value, unit, form in found]
        rows.append([f"`{record['command']}`{failed}", *cells])
    whole = [record for record in records if "torch" in record]
    machines = sorted({f"{r['device_name']}, {r['threads']} threads, torch {r['torch']}" for r in whole})
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows]) + f"\n\n{'; '.join(machines)}\n"


if __name__ == "__main__":
    run(main)
