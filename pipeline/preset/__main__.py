"""Presets: `python -m pipeline.preset model=… data=… scale=…` prints the options for `dvc exp run`.

    dvc exp run $(python -m pipeline.preset data=gsm8k scale=real)

The groups are Hydra config groups in pipeline/preset/groups. `root=FOLDER` reads every data set of the preset from a
local folder in the hub's layout instead of the hub. `key=value` options for anything in params.yaml may follow.
"""

import sys

from pipeline import errors
from pipeline.preset.options import known, options, words

# `dvc exp run $(...)` stops at this word. The shell runs it even where `$(...)` failed: without a word, on params.yaml
REFUSED = "--this-preset-was-refused"


def main() -> None:
    arguments = [a for a in sys.argv[1:] if not a.startswith("root=")]
    roots = [a.removeprefix("root=") for a in sys.argv[1:] if a.startswith("root=")]
    if not sys.argv[1:] or {"-h", "--help"} & set(arguments):
        print(__doc__.strip(), *known(), sep="\n  ")
        return
    try:
        if len(roots) > 1:
            raise errors.UserError(f"root= is given {len(roots)} times: one folder holds all data sets")
        print(*(f"-S {word}" for word in words(options(arguments, next(iter(roots), None)))))
    except errors.UserError:
        print(REFUSED)
        raise


if __name__ == "__main__":
    errors.run(main)
