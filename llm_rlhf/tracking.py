"""Experiment trackers: one run of each, for all stages and the evaluation, named by the recipe's `report_to`.

The trackers are accelerate's (`accelerate.tracking`): TensorBoard, Weights & Biases, MLflow, Trackio and the others it
knows. Metrics are called `STAGE/METRIC`, as in the stage's metrics.jsonl, and stand at the stage's own steps. What the
evaluation found follows when it is done: every estimate with its interval, the curve of the snapshots, and the report.

A launch that goes on with a run goes on with its trackers' runs, too: their names for it are kept in `trackers.json`.
A tracker that fails while a stage trains is told of once and left out; it never ends the run.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from llm_rlhf.errors import RecipeError
from llm_rlhf.progress import tell
from llm_rlhf.redaction import redacted_tree
from llm_rlhf.run_folder import RunFolder, read_json, write_json

PROJECT = "llm-rlhf"  # what trackers collect runs under, where their own environment variables name nothing else
STATE, FOLDER = "trackers.json", "trackers"
KEPT = (STATE, FOLDER)  # in a run folder
PACKAGES = {"comet_ml": "comet-ml"}  # the package of a tracker, where its name is another


class Trackers:
    """Those of one run; none where the recipe names none. On other processes than the main one it does nothing.

    Args:
        names: as in `report_to`.
        name: the run's.
        config: the recipe as plain values, which trackers keep beside the numbers.

    Raises:
        RecipeError: where one cannot be begun.
    """

    def __init__(self, names: Sequence[str], run: RunFolder, name: str, config: Mapping[str, Any]) -> None:
        self.active: dict[str, GeneralTracker] = {}
        if not names or not run.state.is_main_process:
            return
        known = read_json(run / STATE) or {"id": uuid.uuid4().hex[:12]}
        for tracker in names:
            try:
                begun = LOGGER_TYPE_TO_CLASS[tracker](**_arguments(tracker, run, name, known))
                begun.start()
                _describe(begun, config)
            except Exception as error:  # of another library, or of the network
                raise RecipeError(f"Recipe key 'report_to' names {tracker!r}, which cannot begin: {error}") from None
            self.active[tracker] = begun
        if "mlflow" in self.active:
            known["mlflow"] = self.active["mlflow"].tracker.info.run_id
        write_json(run / STATE, known)

    def log(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of a stage's metrics.jsonl; what is no number is left out."""
        numbers = {f"{stage}/{key}": value for key, value in metrics.items() if _is_number(value)}

        def to(tracker: GeneralTracker) -> None:
            if tracker.name == "wandb":  # its own steps may not go back, and every stage begins at 0
                tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                tracker.log({f"{stage}/step": step, **numbers})
            else:
                tracker.log(numbers, step=step)

        self._each(to)

    def report(self, report: Mapping[str, Any], files: Sequence[Path]) -> None:
        """What the evaluation found, and the pages that say it."""
        numbers = {}
        for entry in report["estimates"]:
            parts = [entry["name"], entry["subject"], *([] if entry["split"] == "all" else [entry["split"]])]
            for key in ("estimate", "low", "high"):
                if _is_number(entry[key]):
                    numbers["/".join([_plain_name(part) for part in parts] + [key])] = entry[key]
        self.log("evaluate", 0, numbers)
        curve = report.get("overoptimization") or {}
        for point in curve.get("points", []):
            self.log("distance", point["step"], {key: value for key, value in point.items() if key != "step"})
        self._each(lambda tracker: _attach(tracker, files))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self.active = {}

    def _each(self, call: Callable[[GeneralTracker], None]) -> None:
        for name, tracker in list(self.active.items()):
            try:
                call(tracker)
            except Exception as error:  # a run is worth more than its picture
                tell(f"  warning: the tracker {name} failed and is left out from here on: {error}")
                del self.active[name]


@contextlib.contextmanager
def tracked(names: Sequence[str], run: RunFolder, name: str, config: Mapping[str, Any]) -> Iterator[Trackers]:
    """While it lasts, the trackers are told of every metric of the run's stages; at its end they are closed."""
    trackers = Trackers(names, run, name, config)
    run.followers.append(trackers.log)
    try:
        yield trackers
    finally:
        run.followers.remove(trackers.log)
        trackers.finish()


def known_trackers() -> list[str]:
    """Every name that `report_to` knows."""
    return sorted(LOGGER_TYPE_TO_CLASS)


def missing_package(tracker: str) -> str | None:
    """What to install for a tracker that is not here; None where it is."""
    here = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    return None if tracker in here else PACKAGES.get(tracker, tracker)


def _arguments(tracker: str, run: RunFolder, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """What each needs to be told so that the run has its name, stays in its folder, and is gone on with."""
    folder = run / FOLDER
    if tracker == "tensorboard":
        folder.mkdir(exist_ok=True)
        return {"run_name": name, "logging_dir": folder}
    if tracker == "mlflow":
        return {"experiment_name": PROJECT, "run_name": name, "run_id": known.get("mlflow")}
    if tracker == "wandb":
        folder.mkdir(exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return {"run_name": project, "name": name, "id": known["id"], "resume": "allow", "dir": str(folder)}
    if tracker == "trackio":
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        return {"run_name": project, "name": f"{name}-{known['id'][:4]}", "resume": "allow"}
    return (
        {"run_name": name, "logging_dir": folder}
        if LOGGER_TYPE_TO_CLASS[tracker].requires_logging_directory
        else {"run_name": name}
    )


def _describe(tracker: GeneralTracker, config: Mapping[str, Any]) -> None:
    """The recipe beside the numbers. TensorBoard's table of hyperparameters would make a second run of it: a text."""
    if tracker.name == "tensorboard":
        tracker.tracker.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in _flat(config).items()))
    else:
        tracker.store_init_configuration(_flat(config))


def _attach(tracker: GeneralTracker, files: Sequence[Path]) -> None:
    """The report itself, where a tracker has a place for it."""
    if tracker.name == "mlflow":
        for file in files:
            tracker.log_artifact(str(file))
    elif tracker.name == "wandb":
        import wandb

        pages = {file.stem: wandb.Html(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".html"}
        tracker.tracker.log(pages)
    elif tracker.name == "tensorboard":
        for file in files:
            if file.suffix == ".md":
                tracker.tracker.add_text(file.stem, file.read_text(encoding="utf-8"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Keys as in overrides, values as text: what every tracker takes."""
    flat: dict[str, str] = {}
    for key, value in redacted_tree(tree).items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _plain_name(text: str) -> str:
    """As names of metrics may be in all trackers: MLflow refuses most signs."""
    return "".join(sign if sign.isalnum() or sign in "_-. " else "_" for sign in text)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
