"""A job of several steps over real files, as a run: read, split, count, summarise, report. No model, no network.

    tailrace dev                                     # in another terminal, same folder; open the page it prints
    export TAILRACE_URL=http://127.0.0.1:8080 TAILRACE_TOKEN=$(cat .tailrace/token)
    python examples/workflow/summarise.py docs --id notes-1 --report report.md
    tailrace tail run:notes-1                        # in a third terminal, as often as you like

Reload the page, or end `tailrace tail` and start it again: the whole story is there, and it goes on live. Kill the job
(`kill -9`): within 15 s the run ends as lost. Begin again where it was:

    python examples/workflow/summarise.py docs --id notes-2 --resume notes-1 --report report.md

Cancel it (`POST /api/v1/runs/notes-1/cancel`): the job stops within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tailrace.errors import TailraceError
from tailrace.features.runs.active import ActiveRun
from tailrace.features.runs.events import EventStore
from tailrace.features.runs.producing import Runs
from tailrace.features.runs.steps import RunCancelled

SENTENCE = re.compile(r"(?<=[.!?])\s+")
WORD = re.compile(r"[a-z]{4,}")
COMMON = {
    "with",
    "that",
    "this",
    "from",
    "have",
    "when",
    "what",
    "which",
    "they",
    "them",
    "their",
    "there",
    "then",
    "than",
}


def split(text: str) -> list[str]:
    """The sentences of a page, without code, tables and headings."""
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", "|", ">"))]
    return [part for part in SENTENCE.split(" ".join(lines)) if len(part) > 30]


def count(sentences: list[str]) -> Counter[str]:
    """How often each word is used."""
    return Counter(word for part in sentences for word in WORD.findall(part.lower()) if word not in COMMON)


def best(sentences: list[str], words: Counter[str], most: int = 2) -> list[str]:
    """The sentences that use the page's most frequent words, in their order."""

    def weight(part: str) -> float:
        used = WORD.findall(part.lower())
        return sum(words[word] for word in used) / (len(used) + 5)

    chosen = sorted(sentences, key=weight, reverse=True)[:most]
    return [part for part in sentences if part in chosen]


async def page(run: ActiveRun, path: Path, pause: float) -> dict[str, Any]:
    """One file, in steps that a viewer can follow."""
    async with run.step(path.name, kind="file"):
        async with run.step("read") as step:
            text = await asyncio.to_thread(path.read_text)
            step.emit("file.read", {"file": path.name, "bytes": len(text.encode())})
        async with run.step("split") as step:
            sentences = split(text)
            step.emit("file.split", {"file": path.name, "sentences": len(sentences)})
        async with run.step("count"):
            words = count(sentences)
        async with run.step("summarise") as step:
            summary = best(sentences, words)
            for part in summary:
                for word in part.split():
                    step.token(f"{word} ")
                    await asyncio.sleep(pause)
        result = {"file": path.name, "words": words.total(), "top": words.most_common(5), "summary": summary}
        run.emit("file.done", result)
        return result


def report(results: list[dict[str, Any]]) -> str:
    """What was found, as Markdown."""
    parts = ["# What these pages say\n"]
    for each in results:
        top = ", ".join(word for word, _ in each["top"])
        parts.append(f"## {each['file']}\n\n{each['words']} words; mostly: {top}\n\n{' '.join(each['summary'])}\n")
    return "\n".join(parts)


async def done_before(run_id: str | None) -> dict[str, dict[str, Any]]:
    """What an earlier run finished: its own events are the record of it."""
    if run_id is None:
        return {}
    async with EventStore() as store:
        events = await store.get_events(run_id, limit=10_000)
    return {event.data["file"]: event.data for event in events if event.type == "file.done"}


async def work(given: argparse.Namespace) -> str:
    """The job."""
    paths = sorted(given.folder.glob("*.md"))
    finished = await done_before(given.resume)
    async with (
        Runs.connect(spool=given.spool) as runs,
        runs.open(kind="summary", title=f"Summaries of {given.folder.name}", run_id=given.id) as run,
    ):
        print(run.stream, flush=True)
        results = []
        for number, path in enumerate(paths, 1):
            if path.name in finished:
                run.emit("file.skipped", {"file": path.name, "since": given.resume})
            results.append(finished.get(path.name) or await page(run, path, given.pause))
            run.emit("progress", {"done": number, "of": len(paths)}, key="progress")
        async with run.step("report"):
            text = report(results)
            await asyncio.to_thread(given.report.write_text, text)
        run.result = {"files": len(results), "report": given.report.name}
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Summarise the Markdown files of a folder, as a run.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--id", help="the run's id; else a new one")
    parser.add_argument("--resume", help="id of a run that was lost: what it finished is not done again")
    parser.add_argument("--report", type=Path, default=Path("report.md"))
    parser.add_argument("--spool", type=Path, help="keep undelivered events in this folder")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two words, so that one can watch")
    given = parser.parse_args()
    if not any(given.folder.glob("*.md")):
        parser.error(f"there is no Markdown file in {given.folder}")
    try:
        text = asyncio.run(work(given))
    except RunCancelled as error:
        print(json.dumps({"cancelled": str(error)}))
        return 1
    except TailraceError as error:  # the server is away, the token is not good, a run of this id has ended before
        print(error, file=sys.stderr)
        return 1
    print(f"{len(text.splitlines())} lines in the report")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
