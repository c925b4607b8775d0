"""Studies: one module for each question, with `main(arguments) -> exit status`; it reads or trains runs, and writes.

A new study is a module here and a line in STUDIES. This file imports nothing: the command line reads it for its help.
"""

STUDIES = {
    "trajectory": "how losses, weights, gradients and attention across domains went over training",
    "proxy": "does attention across domains tell of negative transfer?",
    "weights": "is any fixed weight of attention across domains best everywhere?",
    "plugin": "what do AutoCDSR and AutoCDSR+ add to SASRec and BERT4Rec, and at what cost?",
    "tokens": "how many bottleneck tokens does AutoCDSR+ need, and how are they merged?",
    "noise": "what do wrong and hidden domain labels cost?",
    "domains": "how do models and their balance do with 2 to 50 domains?",
    "overlap": "who gains, the fewer users are known in several domains?",
    "switch": "do TAPE and DDSR pay at switches of domain?",
}
