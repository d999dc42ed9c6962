"""``python -m meshnet.networks`` prints the parameter count of every network beside the paper's."""

import torch

from meshnet.errors import OneLineParser, UserError, run_script
from meshnet.networks.baselines import NETWORKS, build_baseline
from meshnet.networks.memory import count_parameters
from meshnet.networks.meshnet import MeshNet


def table() -> list[dict]:
    """One row per network: name, parameters (1 input, 2 classes), parameters in the paper, why they differ."""
    rows = []
    for channels, paper in ((5, 5_682), (16, 56_194), (26, 147_474)):
        rows.append({"name": f"meshnet (channels {channels})", "parameters": count_parameters(MeshNet(channels)),
                     "paper": paper, "why": ""})
    for name, row in NETWORKS.items():
        # The meta device allocates nothing. SwinUNETR reads numbers while it is built, which does not work there.
        with torch.device("cpu" if name == "swin_unetr" else "meta"):
            parameters = count_parameters(build_baseline(name))
        rows.append({"name": name, "parameters": parameters, "paper": row.paper_parameters, "why": row.why})
    return rows


def main() -> None:
    OneLineParser("python -m meshnet.networks",
                  description="Print the parameter count of every network beside the paper's.").parse_args()
    try:
        rows = table()
    except ImportError as error:
        raise UserError(f"{error.name}: not installed; pip install -r requirements.txt") from error
    print(f"{'network':24}{'parameters':>12}{'paper':>12}{'difference':>12}  why")
    for row in rows:
        difference = row["parameters"] - row["paper"]
        print(f"{row['name']:24}{row['parameters']:>12,}{row['paper']:>12,}{difference:>+12,}  {row['why']}".rstrip())


if __name__ == "__main__":
    run_script(main)
