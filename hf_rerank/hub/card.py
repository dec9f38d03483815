"""The model card: what a re-ranker is, how to use it, and its measured results; generated, never written manually.

``model_card`` makes it from the ``results.json`` of a run. The card contains nothing that is not in the results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rerank.hub.figures import OBEDIENCE as OBEDIENCE_FIGURE
from hf_rerank.hub.figures import TRAINING as TRAINING_FIGURE
from hf_rerank.hub.figures import evaluation_to_draw, measures_of
from hf_rerank.hub.papers import PAPERS, PRINCIPLES
from hf_rerank.metrics import RankingMetrics
from hf_rerank.principled import PRESETS
from hf_rerank.principled.obedience import MAX_STEPS
from hf_rerank.storage.hub_upload import TAGS

TEMPLATE = Path(__file__).with_name("card_template.md")
# Measures in the order of the tables; those with a cut-off k are shown for every k in the results.
RANKING = ("auc", "gauc", "ndcg", "map", "precision", "expected_clicks", "expected_clicks_share", "ips_clicks")
OBEDIENCE = (
    *("p1_obedience", "p1_item_obedience", "p2_obedience", "p2_item_obedience"),
    *("fixed_point_rate", "score_spread", "collapsed_share"),
)
# Settings of an evaluation -> the measures that they affect.
SETTINGS = {
    "no_click": ("ndcg", "map", "precision"),
    "ndcg_gain": ("ndcg",),
    "map_denominator": ("map",),
    "precision_denominator": ("precision",),
    "gauc_weighting": ("gauc",),
    "auc_exact_up_to_pairs": ("auc",),
    "ties": ("auc", "gauc", "ndcg", "map", "precision", "expected_clicks", "expected_clicks_share", "ips_clicks"),
}
OBEDIENCE_SETTINGS = ("obedience_k", "swaps", "max_steps")


def model_card(
    name: str,
    results: Mapping[str, Any],
    *,
    figures: Collection[str] = (),
    introduction: str = "",
    experiment: str = "",
) -> str:
    """Returns the text of the README.md for one run.

    Args:
        name: Name of the repository.
        results: Results in the form of ``RerankTrainer.results``.
        figures: File names of the figures of ``hub.figures`` that are stored next to the card.
        introduction: Markdown below the title.
        experiment: Markdown, with headings, about further measurements; placed below the results of this run.
    """
    model_type = results.get("model", {}).get("model_type")
    schema = results.get("schema")
    evaluations = {
        prefix: {measure: value for measure, value in measures_of(results, prefix).items() if _is_number(value)}
        for prefix in results.get("evaluations", {})
    }
    settings = {prefix: _settings_of(results, prefix) for prefix in evaluations}
    return _render(
        name,
        introduction=introduction,
        about=_describe_model(model_type, results.get("parameters"), schema),
        model_type=model_type,
        schema=schema,
        snippet=_snippet(name, schema, results.get("text_columns", ())),
        data=_data_points(results),
        learning=_paragraphs(_learning_points(results), _figure(results, TRAINING_FIGURE, figures)),
        results=_ranking_results(results, evaluations, settings),
        obedience=_obedience_results(results, evaluations, settings, figures),
        experiment=experiment,
        cost=_cost_points(results),
        measured=[
            _make_entry(
                f"{prefix} lists of this run", "lists", prefix, measure, value, _args(measure, settings[prefix])
            )
            for prefix, metrics in evaluations.items()
            for measure, value in _select_measures(metrics, RANKING).items()
        ],
    )


def markdown_text(value: str) -> str:
    """Escapes text for a Markdown table: characters that could be markup or end a cell become HTML entities."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_]*[A-Za-z0-9])?", value):
        return value
    return "".join(sign if sign.isalnum() or sign == " " else f"&#{ord(sign)};" for sign in value)


# --------------------------------------------------------------------------------------------------- parts of the card


def _render(
    title: str,
    *,
    about: str,
    model_type: str | None,
    schema: Mapping[str, Any] | None,
    measured: Sequence[Any],
    **pieces: str,
) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    more: dict[str, Any] = {"model_name": title, "eval_results": list(measured)} if measured else {}
    data = ModelCardData(library_name="hf_rerank", tags=list(TAGS), **more)
    paper = PAPERS.get(model_type or "")
    citations = [paper.citation] if paper is not None and paper.citation is not None else []
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=title,
        about=about,
        columns=_columns_table(schema),
        simulated=schema is not None and schema.get("examination") is not None,
        citations=_points([*citations, PRINCIPLES]),
        **pieces,
    )
    return str(card).rstrip("\n") + "\n"


def _describe_model(model_type: str | None, parameters: int | None, schema: Mapping[str, Any] | None) -> str:
    paper = PAPERS.get(model_type or "")
    what = "A re-ranker" if paper is None else f"{paper.name}, {paper.idea}"
    if model_type is not None:
        what += f" (`{model_type}`)"
    if parameters is not None:
        what += f", with {parameters:,} parameters"
    length = "" if schema is None else f" of at most {schema['max_list_length']} items"
    return (
        f"{what}. It takes a list{length} in an initial order, such as that of a recommender, and gives it a new one."
    )


def _columns_table(schema: Mapping[str, Any] | None) -> str:
    if schema is None:
        return ""
    rows = [
        [markdown_text(feature["name"]), part, feature["kind"], _format_size(feature)]
        for part in ("items", "user", "history")
        for feature in schema.get(part, ())
    ]
    return _table(["column", "of", "kind", "size"], rows)


def _format_size(feature: Mapping[str, Any]) -> str:
    if feature["kind"] == "vector":
        return str(feature["dim"])
    if feature["kind"] == "dense":
        return "2" if feature.get("missing") == "indicator" else "1"
    if feature.get("shares") is not None:
        return f"as {markdown_text(feature['shares'])}"
    if feature.get("hash_size") is not None:
        return f"{feature['hash_size']:,}, hashed"
    return f"{feature['size']:,}" if feature.get("size") is not None else ""


def _loading(source: str) -> str:
    return f"from hf_rerank import Reranker\n\nreranker = Reranker.from_pretrained({json.dumps(source)})"


def _snippet(source: str, schema: Mapping[str, Any] | None, text_columns: Sequence[str]) -> str:
    """Returns Python code that ranks one list with every column of the schema."""
    if schema is None:
        return _loading(source)
    lines = [_loading(source), "one_list = {"]
    for part, count in (("items", min(3, schema["max_list_length"])), ("user", None), ("history", 2)):
        for feature in schema.get(part, ()):
            is_text = feature["name"] in text_columns or feature.get("shares") in text_columns
            lines.append(f"    {feature['name']!r}: {_example(feature, count, is_text)},  # {part}")
    lines += ["}", "(ranked,) = reranker.rerank([one_list], top_k=10)"]
    return "\n".join([*lines, 'print(ranked["order"], ranked["scores"])  # places in the row, best first'])


def _example(feature: Mapping[str, Any], count: int | None, is_text: bool) -> str:
    if feature["kind"] == "vector":
        return f"[[0.0] * {feature['dim']}] * {count}"
    values: list[Any] = [0.5, 1.0, 1.5] if feature["kind"] == "dense" else ["a", "b", "c"] if is_text else [1, 2, 3]
    return repr(values[0] if count is None else values[:count])


def _data_points(results: Mapping[str, Any]) -> str:
    arguments, training = results.get("training_arguments", {}), results.get("training", {})
    data = results.get("data", {})
    evaluated = {name: identity for name, identity in results.get("evaluation_data", {}).items() if name not in data}
    points = _identities({**data, **evaluated})
    points += [
        f"The numbers of {markdown_text(name)} are of other lists than the training's: {_count_lists(identity)}."
        for name, identity in results.get("evaluation_data", {}).items()
        if data.get(name, identity) != identity
    ]
    if (arguments.get("max_steps") or 0) > 0:
        points.append(f"{arguments['max_steps']:,} steps.")
    elif "num_train_epochs" in arguments:
        points.append(f"{arguments['num_train_epochs']:g} epochs.")
    for key, words in (("per_device_train_batch_size", "Lists per batch"), ("learning_rate", "Learning rate")):
        if key in arguments:
            points.append(f"{words}: {arguments[key]:g}.")
    if "seed" in arguments:
        points.append(f"One run, seed {arguments['seed']}: another seed gives other numbers.")
    if arguments.get("load_best_model_at_end") and training.get("best_step") is not None:
        points.append(
            f"The checkpoint with the best `{arguments['metric_for_best_model']}` on the validation lists: step "
            f"{training['best_step']:,} of {training['steps']:,}."
        )
    return _points(points)


def _identities(data: Mapping[str, Any]) -> list[str]:
    points = []
    for split, identity in data.items():
        digest = identity.get("sha256")
        points.append(
            f"`{split}`: {_count_lists(identity)}" + ("." if digest is None else f", SHA-256 `{digest[:16]}`...")
        )
    return points


def _count_lists(identity: Mapping[str, Any]) -> str:
    return "a stream" if identity.get("lists") is None else f"{identity['lists']:,} lists"


def _learning_points(results: Mapping[str, Any]) -> str:
    points = [f"Task loss: `{results['task_loss']}`."] if "task_loss" in results else []
    if "objective" in results:
        points.append(_describe_principles(results["objective"]))
    reads = results.get("model", {}).get("position_input")
    if reads is not None:
        points.append(f"The initial order is read as: `{reads}`.")
    return _points(points)


def _describe_principles(objective: Mapping[str, Any]) -> str:
    name = objective.get("principled")
    what = f"Principled preset `{name}`" if name in PRESETS else "An objective of its own"
    passes = {entry["name"]: _describe_pass(entry) for entry in objective.get("passes", ())}
    terms = [
        f"`{term['name']}`, weight {term['weight']:g}, compares the scores on {passes[term['first']]} and on "
        f"{passes[term['second']]} (as `{term['space']}`, reduction `{term['reduction']}`{_changed(term, _TERM)})"
        for term in objective.get("terms", ())
    ]
    others = [passes[name] for name in objective.get("task_loss_on", ()) if name in list(passes)[1:]]
    loss = f"the task loss also on {' and '.join(others)}" if others else "the task loss alone"
    if terms:
        loss = "; ".join([*terms, *([loss] if others else [])])
    return f"{what}: {loss}{_changed(objective, _OBJECTIVE)}."


# Settings that are stated only where they differ from these, which are those of the presets.
_TERM = {"positions": "input", "stop_gradient": None}
_OBJECTIVE = {"fraction": 1, "warmup": 0}
_PERTURBED = {"strength": 1}
_SOFT = {"sinkhorn": 0, "straight_through": False}


def _changed(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    changed = (name for name, default in defaults.items() if settings.get(name, default) != default)
    return "".join(f", {name} `{settings[name]}`" for name in changed)


def _describe_pass(entry: Mapping[str, Any]) -> str:
    masks = " with dropout masks of its own" if entry.get("dropout") == "fresh" else ""
    return f"{_describe_order(entry['order'])}{masks}"


def _describe_order(order: Any) -> str:
    if isinstance(order, str):
        return {"given": "the given order", "own": "the model's own order"}.get(order, f"`{order}`")
    ((kind, options),) = order.items()
    if kind == "perturbed":
        return f"{_describe_order(options['of'])} after `{options['kind']}`{_changed(options, _PERTURBED)}"
    soft = _changed(options, _SOFT)
    return f"a soft order (`{options['relaxation']}`, temperature {options['temperature']:g}{soft})"


def _cost_points(results: Mapping[str, Any]) -> str:
    training = results.get("training", {})
    points = [f"{results['parameters']:,} parameters."] if "parameters" in results else []
    if "seconds" in training:
        points.append(f"Training: {training['seconds']:,.1f} seconds for {training['steps']:,} steps.")
    return _points([*points, *_describe_machine(results)])


def _describe_machine(results: Mapping[str, Any]) -> list[str]:
    found = results.get("environment")
    if found is None:
        return []
    versions = ", ".join(f"{package} {version}" for package, version in found.get("versions", {}).items())
    return [f"Device: {found['device']}; CPUs: {found['cpus']}; threads: {found['threads']}; {versions}."]


# --------------------------------------------------------------------------------------------------------- the numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _select_measures(metrics: Mapping[str, Any], bases: Sequence[str]) -> dict[str, Any]:
    """Selects the measures with these names, with or without a cut-off, in the order of ``bases``."""
    return {name: metrics[name] for base in bases for name in metrics if name.split("@")[0] == base}


def _ranking_results(
    results: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, float]], settings: Mapping[str, Any]
) -> str:
    """Describes the metrics of every evaluation, next to those of the initial order if known, and their settings."""
    columns: dict[str, Mapping[str, float]] = {}
    orders = results.get("orders", {})
    for prefix, metrics in evaluations.items():
        columns[markdown_text(prefix)] = metrics
        initial = orders.get(prefix, {}).get("initial")
        if initial is not None:
            columns[f"{markdown_text(prefix)}, initial order"] = {
                name: value for name, value in initial.items() if name in metrics and _is_number(value)
            }
    table = _add_settings(_measure_table(columns, RANKING), settings)
    if not table or len(columns) == len(evaluations):
        return table
    return _paragraphs(table, "The initial order is that in which the lists came to the model, measured alike.")


def _obedience_results(
    results: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, Any],
    figures: Collection[str],
) -> str:
    table = _measure_table({markdown_text(prefix): metrics for prefix, metrics in evaluations.items()}, OBEDIENCE)
    if not table:
        return ""
    measured = {prefix: settings[prefix] for prefix in evaluations if _select_measures(evaluations[prefix], OBEDIENCE)}
    used = _settings_sentences("Settings of the obedience", measured, OBEDIENCE_SETTINGS)
    return _paragraphs(table, used, _figure(results, OBEDIENCE_FIGURE, figures))


def _measure_table(columns: Mapping[str, Mapping[str, float]], bases: Sequence[str]) -> str:
    """Formats one row per measure and one column per evaluation or order; empty if nothing was measured."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in _select_measures(metrics, bases)))
    if not names:
        return ""
    rows = [
        [name, *(f"{metrics[name]:.4f}" if name in metrics else "" for metrics in columns.values())] for name in names
    ]
    return _table(["measure", *columns], rows)


def _settings_of(results: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the settings stored with an evaluation, or else those of the trainer."""
    added = results.get("evaluation_settings", {}).get(prefix)
    if added is not None:
        return dict(added)
    arguments = results.get("training_arguments", {})
    if not {"metric_ks", "no_click", "obedience_k"} <= arguments.keys():
        return {}
    metrics = RankingMetrics(
        arguments["metric_ks"],
        no_click=arguments["no_click"],
        gain=arguments.get("gain", "exponential"),
        click_above=arguments.get("click_above"),
    ).settings()
    swaps = arguments.get("swaps", "all")
    return {**metrics, "obedience_k": arguments["obedience_k"], "swaps": swaps, "max_steps": MAX_STEPS}


def _add_settings(table: str, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Adds the settings of each evaluation below a table of metrics."""
    used = _settings_sentences("Settings of the metrics", settings, SETTINGS)
    if not table or not used:
        return table
    return f"{table}\n\n{used} Toolkits differ in these: compare like with like."


def _settings_sentences(what: str, settings: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> str:
    """Writes one sentence if all evaluations used the same settings, else one per group of settings."""
    names = tuple(names)
    sharing: dict[str, list[str]] = {}
    for prefix, values in settings.items():
        used = ", ".join(f"`{name}` {values[name]}" for name in names if name in values)
        sharing.setdefault(used, []).append(markdown_text(prefix))
    if len(sharing) == 1:
        return "".join(f"{what}: {used}." for used in sharing if used)
    return " ".join(f"{what}, {' and '.join(prefixes)}: {used}." for used, prefixes in sharing.items() if used)


def _figure(results: Mapping[str, Any], name: str, figures: Collection[str]) -> str:
    """Links a figure stored next to the card, with alternative text."""
    if name not in figures:
        return ""
    shows = "The training, step by step: loss terms, obedience on the evaluation lists, score spread, gradient norm"
    if name == OBEDIENCE_FIGURE:
        split = markdown_text(evaluation_to_draw(results) or "")
        shows = f"Obedience to both principles on the lists of {split}, and the share whose ranking settles"
    return f"![{shows}]({name})"


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _args(measure: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    base, _, cut = measure.partition("@")
    args: dict[str, Any] = {"k": int(cut)} if cut else {}
    return args | {name: settings[name] for name, decides in SETTINGS.items() if base in decides and name in settings}


def _make_entry(dataset: str, kind: str, split: str, measure: str, value: float, args: dict[str, Any]) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="re-ranking",
        task_name="Re-ranking",
        dataset_type=kind,
        dataset_name=dataset,
        dataset_split=split,
        metric_type=measure,
        metric_name=measure,
        metric_value=value,
        metric_args=args or None,
    )


def _points(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
