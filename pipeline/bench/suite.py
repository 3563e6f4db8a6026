"""The benchmark set: ``python -m pipeline.bench.suite cpu`` (or ``cuda``) measures it and writes a table.

Each line of the set runs in its own process, so that its peak memory is its own.
"""

import json
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import UserError, run

FOLDER = Path("results/bench")
GPU = "--device cuda --dtype bfloat16 --rationales 2 --thought-tokens 9 --lookahead 4 --repeats 3"
ONE_B = "--hidden 2048 --layers 16 --heads 32 --kv-heads 8 --ffn 8192 --vocab 32000"
SEVEN_B = "--hidden 4096 --layers 32 --heads 32 --kv-heads 8 --ffn 14336 --vocab 32000"
SETS = {
    "cpu": [
        "train --tokens 256",
        "train --tokens 512",
        "train --tokens 1024",
        "train --tokens 256 --vocab 32000",
        "train --tokens 256 --vocab 32000 --positions 64",
        "train --tokens 256 --vocab 32000 --thought-tokens 18",
        "train --tokens 256 --vocab 32000 --thought-tokens 18 --positions 64",
        "train --tokens 256 --checkpointing",
        "train --tokens 256 --attention reference",
        "generate --tokens 256 --thought-tokens 5",
        "generate --tokens 256 --thought-tokens 5 --batch 16",
    ],
    "cuda": [
        f"train {GPU} {ONE_B} --tokens 256 --batch 4",
        f"train {GPU} {ONE_B} --tokens 256 --batch 4 --compile",
        f"train {GPU} {ONE_B} --tokens 256 --batch 8 --checkpointing --compile",
        f"train {GPU} {ONE_B} --tokens 256 --batch 4 --attention reference",
        f"train {GPU} {SEVEN_B} --tokens 256 --batch 1 --checkpointing --compile",
        f"train {GPU} {SEVEN_B} --tokens 256 --batch 1 --freeze-base --positions 64",
        f"generate {GPU} {ONE_B} --tokens 256 --batch 16",
    ],
}
COLUMNS = {
    "s a step": ("step_seconds", 1, ".2f"),
    "text tokens/s": ("tokens_per_second", 1, ".0f"),
    "useful TFLOP": ("useful_flops", 1e12, ".3f"),
    "of GEMM": ("gemm_fraction", 1, ".2f"),
    "MFU": ("mfu", 1, ".2f"),
    "ms a token": ("seconds_per_token", 1e-3, ".1f"),
    "ms recomputed": ("seconds_per_token_recomputed", 1e-3, ".0f"),
    "peak GB": ("peak_memory_bytes", 1e9, ".2f"),
    "process GB": ("peak_process_bytes", 1e9, ".2f"),
    "2048-cube GFLOP/s": ("gemm_2048_flops_per_second", 1e9, ".0f"),
}


def main() -> None:
    """Measure the named set; write FOLDER/NAME.jsonl and a table, FOLDER/NAME.md."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in SETS:
        raise UserError(f"usage: python -m pipeline.bench.suite {'|'.join(SETS)}")
    records = []
    for line in tqdm(SETS[name], desc="benchmarks", unit=" runs"):
        done = subprocess.run([sys.executable, "-m", "pipeline.bench", *line.split()], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            record = {"failed": last.removeprefix("error: ")}
        else:
            record = json.loads(done.stdout.splitlines()[-1])
        records.append({"command": line, **record})
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (FOLDER / f"{name}.md").write_text(table(records))
    print(table(records))


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
