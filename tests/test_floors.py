"""The house: a module imports only from its own floor's left or from floors below, and floor 0 never loads torch."""

import ast
import subprocess
import sys

FLOORS = [
    ["errors", "files", "config", "recipe", "schema", "labels", "nifti", "resample", "geometry", "splits", "sources",
     "sources_bids", "sources_folders", "sources_table", "rows", "dataset", "asha", "space", "sampler", "ledger",
     "stats", "processes", "launch", "runfolder"],
    ["kernels", "operations", "memory", "model", "syncnorm", "ukan", "umamba", "baselines", "loss", "metrics", "lesionmask", "optim", "atlas", "lesions",
     "head", "scanner", "synthetic", "charts", "figures", "search_figures"],
    ["checkpoint", "modelfolder", "augment", "data", "segment"],
    ["registry", "hub", "export_tfjs", "export_onnx", "export", "tables", "page", "results", "report", "tracking",
     "evaluation", "ensemble"],
    ["engine", "setup"],
]
REACH_UP = {("model", "modelfolder"), ("modelfolder", "hub"), ("modelfolder", "registry")}  # inside functions
