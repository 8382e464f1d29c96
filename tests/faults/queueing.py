"""Long queues, cancelled prompts and deleted ones: each prompt gives what it gives alone."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from comfyui_client import TEXT_EVENT, Client, Run
from comfyui_server import Server

from . import served
from .report import Outcome, Settings, Tally
from .served import LOADER, SHOW, Prompt

PEOPLE = 1_000_001, 1_000_002
TRAINING = {"views_per_photo": 2, "batch": 1, "size": 64, "steps": 8, "preview_every": 0}
LONG = {"views_per_photo": 2, "batch": 1, "size": 64, "steps": 1000, "preview_every": 0}
SEEDS = 3
QUEUED, QUICK_QUEUED = 200, 9
WARM_UP = 20  # queued prompts after which the server's memory is measured
MEASURED = 20  # prompts at both ends, whose median counts
GROWTH = 0.01
CANCELS, QUICK_CANCELS = 12, 1
LONG_STEPS = 100  # sampling steps of a restoration that is to be cancelled
CANCEL_AT = 3  # steps of sampling or training
RESTORE = "8"  # node of `served.restoration`
SIDE = "r"  # before the nodes of a second restoration in the same prompt
# How ComfyUI keeps results: those of the last prompt alone, or none at all.
CACHES = ("--cache-classic", QUEUED), ("--cache-none", 80)


def run(settings: Settings) -> list[Outcome]:
    """Starts servers and measures; see `measure`."""
    outcomes = []
    for option, prompts in CACHES[:1] if settings.quick else CACHES:
        server = served.new_server(settings.workspace / option.strip("-"))
        server.options.append(option)
        with server:
            trial = Trial(server)
            if settings.quick:
                outcomes += measure(trial, QUICK_QUEUED, QUICK_CANCELS)
            elif option == CACHES[0][0]:
                outcomes += measure(trial, prompts, CANCELS)
            else:
                outcomes += trial.alternate(prompts, f", server started with {option}")
    return outcomes


def measure(trial: Trial, queued: int, cancels: int) -> list[Outcome]:
    """Raises all faults of this module.

    Args:
        trial: on a running server.
        queued: prompts that are queued at once.
        cancels: how often each kind of cancelling is done.
    """
    return [
        *trial.alternate(queued),
        trial.cancel_restorations(cancels),
        trial.cancel_trainings(cancels),
        trial.delete(cancels),
        trial.unload(cancels),
    ]


class Trial:
    """A server with two adapters, and what each restoration gives alone.

    Args:
        server: running; gets photos, adapters and pictures under names of their own.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._numbers = itertools.count()
        self.photos = [served.write_photos(server, person) for person in PEOPLE]
        self.adapters = [f"faults/{person}.safetensors" for person in PEOPLE]
        self.expected: dict[tuple[str | None, int], str] = {}
        with Client(server.url) as client:
            for seed in range(SEEDS):  # the base before any adapter is there
                self.expected[None, seed] = self.alone(client, None, seed)
            for photos, adapter in zip(self.photos, self.adapters, strict=True):
                _succeeded(client.run(served.training(photos, adapter, **TRAINING)))
                for seed in range(SEEDS):
                    self.expected[adapter, seed] = self.alone(client, adapter, seed)
        if len(set(self.expected.values())) < len(self.expected):
            raise RuntimeError("an adapter changes nothing, so that nothing could be told apart")

    def fresh(self, prompt: Prompt) -> Prompt:
        """Returns a prompt that no cache answers: an input that has no effect here is new."""
        for node in prompt.values():
            if node["class_type"] == "PFStorerTiledRestore":
                node["inputs"]["feather"] = next(self._numbers) % 1024
        return prompt

    def restoration(self, adapter: str | None, seed: int, steps: int = 2) -> Prompt:
        """Returns a restoration that no cache answers."""
        return self.fresh(served.restoration(adapter, seed, steps))

    def alone(self, client: Client, adapter: str | None, seed: int) -> str:
        """Returns the digest of a restoration that is queued alone."""
        run = _succeeded(client.run(self.restoration(adapter, seed)))
        return self.digest(run)

    def digest(self, run: Run, node: str = SHOW) -> str:
        """Returns the digest of the picture that a node of a run has saved."""
        return served.pixels(self.server, run, node)

    def compare(self, client: Client, queued: str, adapter: str | None, seed: int) -> str | None:
        """Waits for a queued restoration and says what is wrong with it, None if nothing is."""
        run = client.follow(queued)
        if run.status != "success":
            return f"a restoration ended with {run.status}: {run.error}"
        if RESTORE in run.of_type("execution_cached")[0]["nodes"]:
            return "a restoration was answered from the cache, so that nothing was tried"
        if self.digest(run) != self.expected[adapter, seed]:
            who = "the base" if adapter is None else adapter
            return f"the picture of {who} with seed {seed} is not what it is alone"
        return None

    def cases(self) -> Iterator[tuple[str | None, int]]:
        """Returns adapters (None for the base) and seeds, the base every other time."""
        seeds = itertools.cycle(range(SEEDS))
        for adapter in itertools.cycle(self.adapters):
            yield None, next(seeds)
            yield adapter, next(seeds)

    def both(self, adapter: str, seed: int) -> Prompt:
        """Returns a prompt that restores with an adapter, and beside it with the base."""
        prompt = self.restoration(adapter, seed)
        other = self.restoration(None, seed)
        del other[LOADER]
        for node, entry in other.items():
            for name, value in entry["inputs"].items():
                if isinstance(value, list) and value[0] in other:
                    entry["inputs"][name] = [SIDE + value[0], value[1]]
            prompt[SIDE + node] = entry
        return prompt

    def alternate(self, count: int, how: str = "") -> list[Outcome]:
        """Queues many prompts at once, the base between two adapters, and follows the memory.

        Every fifth prompt restores with base and adapter side by side.
        """
        base = Tally(
            f"Restorations with the base among {count} queued prompts with and without adapters"
            + how,
            "The picture is what it is before any adapter was there",
        )
        adapted = Tally(
            "Restorations with one of two adapters among them" + how,
            "The picture is what it is alone",
        )
        process = psutil.Process(self.server.pid)
        memory = []
        with Client(self.server.url) as client:
            queued = []
            for number, (adapter, seed) in enumerate(itertools.islice(self.cases(), count)):
                side = adapter is not None and number % 5 == 0
                prompt = self.both(adapter, seed) if side else self.restoration(adapter, seed)
                queued.append((client.queue(prompt), adapter, seed, side))
            for prompt_id, adapter, seed, side in queued:
                problem = self.compare(client, prompt_id, adapter, seed)
                (base if adapter is None else adapted).add(problem)
                if side:
                    outputs = Run(prompt_id, outputs=client.history(prompt_id)["outputs"])
                    same = self.digest(outputs, SIDE + SHOW) == self.expected[None, seed]
                    base.add(None if same else "beside an adapter the base is another")
                memory.append(process.memory_info().rss)
        outcomes = [base.outcome(), adapted.outcome()]
        if count >= WARM_UP + 2 * MEASURED:
            outcomes.append(_growth(memory, how))
        return outcomes

    def cancel_restorations(self, count: int) -> Outcome:
        """Cancels a restoration while it samples, with the next prompt in the queue already."""
        tally = Tally(
            "A restoration cancelled (/interrupt) while it samples, another queued behind it",
            "The second gives exactly what it gives alone",
        )
        cases = self.cases()
        with Client(self.server.url) as client:
            for _ in range(count):
                (first, seed), second = next(cases), next(cases)
                long = self.restoration(first, seed, LONG_STEPS)
                tally.add(self._cancel(client, long, Canceller(client, _sampled), second))
        return tally.outcome()

    def cancel_trainings(self, count: int) -> Outcome:
        """Cancels a training, with a restoration in the queue already."""
        tally = Tally(
            "A training cancelled (/interrupt) in its first steps, a restoration queued behind it",
            "The restoration gives exactly what it gives alone",
        )
        with Client(self.server.url) as client:
            for number, second in enumerate(itertools.islice(self.cases(), count)):
                training = served.training(self.photos[0], "faults/stopped", **LONG, seed=number)
                tally.add(self._cancel(client, training, Canceller(client, _trained), second))
        return tally.outcome()

    def delete(self, count: int) -> Outcome:
        """Deletes prompts from the middle and from the end of the queue."""
        tally = Tally(
            "A queued prompt deleted, and the queue cleared",
            "What was deleted never runs, and what stays gives exactly what it gives alone",
        )
        cases = self.cases()
        with Client(self.server.url) as client:
            for _ in range(count):
                kept, deleted, after, cleared = (next(cases) for _ in range(4))
                ids = [client.queue(self.restoration(*case)) for case in (kept, deleted, after)]
                client.post("/queue", {"delete": [ids[1]]})
                problems = [
                    self.compare(client, ids[0], *kept),
                    self.compare(client, ids[2], *after),
                ]
                ids.append(client.queue(self.restoration(*kept, LONG_STEPS)))
                ids.append(client.queue(self.restoration(*cleared)))
                client.post("/queue", {"clear": True})
                client.interrupt()
                last = client.queue(self.restoration(*cleared))
                problems.append(self.compare(client, last, *cleared))
                for gone in (ids[1], ids[4]):
                    problems.append("a deleted prompt ran" if client.history(gone) else None)
                tally.add("; ".join(filter(None, problems)) or None)
        return tally.outcome()

    def unload(self, count: int) -> Outcome:
        """Has ComfyUI unload all models and forget all results between prompts."""
        tally = Tally(
            "Models unloaded and results forgotten (/free) between two prompts",
            "The second gives exactly what it gives alone",
        )
        with Client(self.server.url) as client:
            for adapter, seed in itertools.islice(self.cases(), 2 * count):
                client.post("/free", {"unload_models": True, "free_memory": True})
                queued = client.queue(self.restoration(adapter, seed))
                tally.add(self.compare(client, queued, adapter, seed))
        return tally.outcome()

    def _cancel(
        self,
        client: Client,
        first: Prompt,
        canceller: Canceller,
        second: tuple[str | None, int],
    ) -> str | None:
        ids = client.queue(first), client.queue(self.restoration(*second))
        stopped = client.follow(ids[0], on_event=canceller)
        problem = self.compare(client, ids[1], *second)
        if stopped.status != "interrupted":
            return f"what was cancelled ended with {stopped.status}: {stopped.error}"
        return problem


class Canceller:
    """Interrupts what runs, once, at the first event that has come far enough.

    ComfyUI leaves some events out, so none is waited for in particular.

    Args:
        client: sends the interruption.
        steps: says how many steps are done by an event; None where it is about something else.
    """

    def __init__(self, client: Client, steps: Callable[[dict[str, Any]], int | None]) -> None:
        self.client, self.steps = client, steps
        self.done = False

    def __call__(self, event: dict[str, Any]) -> None:
        done = self.steps(event)
        if not self.done and done is not None and done >= CANCEL_AT:
            self.done = True
            self.client.interrupt()


def _sampled(event: dict[str, Any]) -> int | None:
    data = event["data"]
    of_node = event["type"] == "progress" and data["node"] == RESTORE
    return int(data["value"]) if of_node else None


def _trained(event: dict[str, Any]) -> int | None:
    text = event["data"]["text"] if event["type"] == TEXT_EVENT else ""
    found = re.match(r"Step (\d+) of", text)
    return int(found[1]) if found else None


def _growth(memory: list[int], how: str) -> Outcome:
    """Compares the server's resident memory (bytes, after each prompt) at both ends."""
    tally = Tally(
        f"Memory of the server over {len(memory)} queued prompts{how}",
        f"It grows by less than {GROWTH:.0%}",
    )
    first = statistics.median(memory[WARM_UP : WARM_UP + MEASURED])
    last = statistics.median(memory[-MEASURED:])
    growth = last / first - 1
    figures = f"{first / 2**20:.0f} MiB at first, {last / 2**20:.0f} at last ({growth:+.2%})"
    tally.add(None if growth < GROWTH else figures)
    steady = [value / 2**20 for value in memory[WARM_UP:]]
    figures += f"; medians of {MEASURED} prompts, the first {WARM_UP} left out"
    return tally.outcome(f"{figures}; between {min(steady):.1f} and {max(steady):.1f} throughout")


def _succeeded(run: Run) -> Run:
    if run.status != "success":
        raise RuntimeError(f"a prompt that is to be repeated ended with {run.status}: {run.error}")
    return run
