"""Studies: one module for each question, with `main(arguments) -> exit status`; it reads runs and writes a report.

A new study is a module here and a line in STUDIES. This file imports nothing: the command line reads it for its help.
"""

STUDIES = {
    "trajectory": "how losses, weights, gradients and attention across domains went over training",
}
