"""One run as a DVC experiment: the workspace stays as it is, report and figures are kept in a folder of their own."""

from collections.abc import Mapping
from pathlib import Path

from dvc.api import DVCFileSystem

from pipeline.ablations import experiments
from pipeline.ablations.grid import Workspace, git
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.preset import options as preset

FILES = {"report.html": "results/report/index.html", "summary.json": "results/summary.json"}
FILES |= {f"compare/{name}.csv": f"results/compare/{name}.csv" for name in ("figures", "comparisons", "seeds")}


def run_single(name: str, values: Mapping[str, object], out: Path) -> None:
    """Run the graph up to the report with parameters changed to ``values``, and write FILES to ``out``.

    Raises UserError if the run fails.
    """
    arm = Workspace().arm(name, {}, preset.words(values), target="report")
    failed = experiments.run([arm], 1)
    if failed:
        raise UserError(f"the run failed: {failed[arm.name]}. Put it right and run this again: it resumes")
    files = DVCFileSystem(rev=git("rev-parse", arm.ref))
    for kept, source in FILES.items():
        with replacing(out / kept) as part:
            files.get_file(source, str(part))
    print(f"the report is {out / 'report.html'}")
