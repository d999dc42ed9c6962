"""What the page of a study says: one HTML file with its pictures inside."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from meshnet import webpage
from meshnet.display import count, minutes
from meshnet.files import write_text
from meshnet.search import belief
from meshnet.search.confirm import in_words
from meshnet.search.figures import ranks

PAGE = "study.html"
SHOWN = 30  # trials in the table
PICTURES = {
    "curves.png": ("Learning curves", "The score of each epoch, a line for each trial and inner fold, coloured by its "
                   "highest finished rung; vertical lines are the rungs."),
    "parallel.png": ("Trials across all parameters", "Each line is a trial; the brightest and thickest are the best. "
                     "Trials of a higher rung rank before those of a lower one."),
    "parameters.png": ("Score by parameter", "Each dot is a trial: its value against the score of its highest finished "
                       "rung."),
    "importance.png": ("Importance at the first rung", "How much worse a forest predicts the rank within the first "
                       "rung when the values of one parameter are shuffled (Breiman 2001)."),
}


def write_page(study, status: dict, drawn: Sequence[Path]) -> Path:
    """Write ``study.html`` into the study's folder.

    status: as ``publish`` gives it, with a best trial. drawn: the pictures that ``figures.draw`` wrote.
    """
    path = study.plan.folder / PAGE
    write_text(path, compose(study.plan.folder.name, study.asha, status, {one.name: one for one in drawn}),
               errors="backslashreplace")
    return path


def compose(name: str, asha, status: dict, drawn: dict[str, Path]) -> str:
    """The whole page from the study, its status and its pictures by file name."""
    lead = (f"{count(status['trials'], 'trial')} of {status['max_trials']}, {count(status['epochs'], 'epoch')} in "
            f"{minutes(status['seconds'])}, {status['state']}. Scores are of validation cases: the last word on a "
            "recipe has a cross-validation. Research software, not for diagnosis.")
    sections = [("The best trial", best_table(asha, status)), ("What the model believes", believed(status)),
                ("Rungs", rungs_table(status))]
    sections += [(title, webpage.picture(drawn[file], caption, title))
                 for file, (title, caption) in PICTURES.items() if file in drawn]
    sections.append(("Trials", trials_table(asha, status["metric"])))
    return webpage.whole(f"Search {name}", lead, sections)


def best_table(asha, status: dict) -> str:
    """The score of the search, what is believed and, after ``--confirm``, what was confirmed, side by side."""
    best, found, confirmed = status["best"], status.get("belief"), status.get("confirmed")
    lines = [["best score of the search", str(best["trial"]), f"{best['score']:.4f}", "", values(best["parameters"])]]
    if found:
        low, high = (found["score"] + side * 1.96 * found["uncertainty"] for side in (-1, 1))
        lines.append(["best by what the model believes", str(found["trial"]), f"{found['score']:.4f}",
                      f"{low:.4f} to {high:.4f}", values(asha.trials[found["trial"]].parameters)])
    if confirmed:
        lines.append(["confirmed on other folds and seeds", str(confirmed["trial"]), f"{confirmed['score']:.4f}",
                      f"{confirmed['low']:.4f} to {confirmed['high']:.4f}",
                      values(asha.trials[confirmed["trial"]].parameters)])
    note = (in_words(confirmed) + "." if confirmed else "The best score of many is too high, since luck has chosen it: "
            "search.py --confirm 3 says by how much.")
    titles = ["", "Trial", status["metric"], "95 % interval", "Parameters"]
    if not any(line[3] for line in lines):  # neither a belief nor a confirmation
        titles, *lines = ([*row[:3], *row[4:]] for row in (titles, *lines))
    reached = f"The score of the search is the best by epoch {best['epochs']}. "
    return webpage.table(webpage.html_table(titles, lines), reached + note)


def believed(status: dict) -> str:
    """Importance of the parameters, and whether going on is worth it."""
    found = status.get("belief")
    if not found:
        return '<p class="note">Too few different scores for a model.</p>\n'
    shares = sorted(found["importance"].items(), key=lambda one: -one[1])
    bars = [[escape(name), f"{share:.0%}", f'<svg width="200" height="12" role="img" aria-label="{share:.0%}"><rect '
             f'width="{200 * share:.0f}" height="12" fill="#0072B2"/></svg>'] for name, share in shares]
    note = ("Total Sobol' indices of the expected score at the last rung, as shares of their sum: how much of its "
            "variance over the space is left when all other parameters are known.")
    text = belief.going_on(found, status["seconds_per_epoch"], status["inner_folds"])
    return ((webpage.table(webpage.html_table(["Parameter", "Share", ""], bars), note) if bars else "")
            + f"<p>{escape(text[0].upper() + text[1:])}.</p>\n")


def rungs_table(status: dict) -> str:
    """How many trials finished each rung, and how many went on."""
    keys = ("epochs", "finished", "promoted", "running", "failed")
    lines = [[str(rung[key]) for key in keys] for rung in status["rungs"]]
    failed = "".join(f" Trial {number}: {reason}." for number, reason in list(status["failed"].items())[:5])
    return webpage.table(webpage.html_table([key.capitalize() for key in keys], lines),
                         "Trials that finished a rung, and those of them that were trained further." + failed)


def trials_table(asha, metric: str) -> str:
    """The best trials with their scores at every rung."""
    order = sorted(ranks(asha).items(), key=lambda one: -one[1])[:SHOWN]
    lines = []
    for number, _ in order:
        trial = asha.trials[number]
        scores = [trial.scores.get(rung, math.nan) for rung in range(len(asha.rungs))]
        lines.append([str(number), *(f"{score:.4f}" if math.isfinite(score) else "–" for score in scores),
                      values(trial.parameters)])
    titles = ["Trial", *(count(epochs, "epoch") for epochs in asha.rungs), "Parameters"]
    note = (f"The best {metric} by each rung; the {len(lines)} best of {count(len(asha.trials), 'trial')}. All are in "
            "trials.csv.")
    return webpage.table(webpage.html_table(titles, lines), note)


def values(parameters: dict) -> str:
    """``lr 0.01, channels 16``, as HTML."""
    return escape(", ".join(f"{name} {value}" for name, value in parameters.items()))
