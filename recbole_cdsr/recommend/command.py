"""`recbole-cdsr recommend` and `recbole-cdsr export`: bundles from the command line, json lines in and out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from recbole_cdsr.errors import CDSRError
from recbole_cdsr.names import nearest

LINE_KEYS = ["user", "history", "domain", "id"]
EPILOG = """Each line of FILE is a json object with "history" (a list of items, or of [item, timestamp] pairs) or "user"
(a user of the data set), and may have "domain" (instead of --domain) and "id" (anything; it is given back).
Each answer is one line of json: "id" or "user", "items" (best first), "scores", "by" (model, or popularity where the
history holds no known item) and "skipped" (unknown items of the history)."""


def recommend(argv: list[str]) -> int:
    """Answers each question with one line of json."""
    parser = argparse.ArgumentParser(
        prog="recbole-cdsr recommend",
        description="recommend items to users of the data set or to anyone with a history",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run, or a bundle")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--user", nargs="+", metavar="USER", help="users of the data set")
    asked.add_argument("--history", nargs="+", metavar="ITEM", help="items of one history, oldest first")
    asked.add_argument("--input", metavar="FILE", help="json lines, one question each; - for stdin")
    parser.add_argument("--domain", help="recommend items of this domain only")
    parser.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
    parser.add_argument("--include_seen", action="store_true", help="items of the history may come again")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--out", metavar="FILE", help="write the answers there instead of to stdout")
    options = parser.parse_args(argv)
    if options.input:
        questions = read_questions(options.input)
    elif options.user:
        questions = [{"user": user, "where": "--user"} for user in options.user]
    else:
        questions = [{"history": options.history, "where": "--history"}]
    text = _answers(questions, options)
    if options.out:
        _write(Path(options.out), text)
    else:
        sys.stdout.write(text)
    return 0


def export(argv: list[str]) -> int:
    """Writes the bundle of a run and prints its folder."""
    parser = argparse.ArgumentParser(
        prog="recbole-cdsr export",
        description="write the bundle of a run anew: of an interrupted run, elsewhere, or without its users",
        epilog="A finished run has a bundle already, in the folder bundle/. The data set must be there: --data_path.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--out", metavar="DIR", help="folder of the bundle (default: bundle/ in the folder of the run)")
    parser.add_argument("--without_histories", action="store_true", help="leave out the users and their events")
    parser.add_argument("--data_path", help="where the data are, if not where the run found them")
    options = parser.parse_args(argv)
    from recbole_cdsr import quick_start

    moved = {"data_path": options.data_path} if options.data_path else {}
    print(quick_start.export(options.run, options.out, not options.without_histories, moved))
    return 0


def read_questions(name: str) -> list[dict[str, Any]]:
    """The questions of a file of json lines; empty lines are passed over.

    Raises:
        CDSRError: if the file cannot be read, or a line is not a question, naming the line.
    """
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CDSRError(f"cannot read {name}: {error.strerror or error}") from None
    lines = enumerate(content.split(b"\n"), 1)
    name = "stdin" if name == "-" else name
    return [_question(line, f"{name}, line {number}") for number, line in lines if line.strip()]


def _question(line: bytes, where: str) -> dict[str, Any]:
    try:
        question = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CDSRError(f"{where}: not json ({error})") from None
    if not isinstance(question, dict):
        raise CDSRError(f'{where}: expected an object like {{"history": ["ITEM", "ITEM"]}}')
    for key in question:
        if key not in LINE_KEYS:
            advice = nearest(key, LINE_KEYS, f"a line has {', '.join(LINE_KEYS)}")
            raise CDSRError(f"{where}: unknown key '{key}'; {advice}")
    if ("user" in question) == ("history" in question):
        raise CDSRError(f"{where}: give either 'user' or 'history'")
    if not isinstance(question.get("domain"), str | None):
        raise CDSRError(f"{where}: 'domain' is the name of a domain, but is {question['domain']!r}")
    return {**question, "where": where}


def _answers(questions: list[dict[str, Any]], options: argparse.Namespace) -> str:
    from recbole_cdsr.recommend.recommender import Recommender

    recommender = Recommender.load(options.run, options.device)
    answers = {}
    for key, ask in (("user", recommender.recommend_users), ("history", recommender.recommend)):
        places = [n for n, question in enumerate(questions) if key in question]
        if places:
            found = ask(
                [questions[n][key] for n in places],
                [questions[n].get("domain") or options.domain for n in places],
                options.k,
                not options.include_seen,
                [questions[n]["where"] for n in places],
            )
            answers.update(zip(places, found, strict=True))
    skipped = sum(answer.skipped for answer in answers.values())
    if skipped:
        print(f"{skipped} events with unknown items were skipped", file=sys.stderr)
    named = ({key: question[key] for key in ("id", "user") if key in question} for question in questions)
    lines = [{**name, **answers[place]._asdict()} for place, name in enumerate(named)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CDSRError(f"cannot write {path}: {error.strerror or error}; choose another --out") from None
