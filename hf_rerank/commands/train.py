"""``hf-rerank train``: trains a re-ranker on prepared lists."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import (
    add_revision,
    describe_initial_ranker,
    disable_short_progress_bars,
    lists_folder,
    model_options,
    parse_settings,
)
from hf_rerank.commands.training_options import (
    add_training_options,
    list_given_options,
    parse_training_arguments,
    show_options_with_hyphens,
)
from hf_rerank.errors import InputError

# A model that starts from good scores is already near a good solution: large steps would move it away.
ON_TOP_LEARNING_RATE = 3e-4
# Options that only make sense with validation lists.
_OF_EVALUATION = ("metric_for_best_model", "greater_is_better", "eval_steps", "eval_delay", "eval_on_start")


def add(commands: Any) -> None:
    """Adds the command and its options."""
    train = commands.add_parser(
        "train",
        help="train a re-ranker",
        epilog="Every other option of RerankTrainingArguments is an option here too; --help-all lists them.",
    )
    groups = {
        name: train.add_argument_group(name) for name in ("data", "model", "principles", "optimization", "output")
    }
    data, model, output = groups["data"], groups["model"], groups["output"]
    data.add_argument("--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists")
    data.add_argument(
        "--train-on",
        choices=("train", "all"),
        default="train",
        help="all: final fit on the train and validation splits together; without validation lists no best checkpoint "
        "is chosen, and the model of the last step is saved (default: train)",
    )
    model.add_argument("--model", metavar="NAME", help="a new model: dlcm, dnn, midnn, pear, prm, raise or setrank")
    model.add_argument("--preset", metavar="NAME", help="published sizes: paper, librerank-ad or librerank-prm")
    model.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the model's config"
    )
    model.add_argument(
        "--on-top-of",
        choices=("lambdamart",),
        metavar="RANKER",
        help="lambdamart: first train boosted trees, start from their scores and save them with the model; training "
        "needs LightGBM, ranking does not",
    )
    model.add_argument(
        "--trees-read-order",
        choices=("auto", "yes", "no"),
        help="with --on-top-of: whether the trees also read the given position of an item; their scores are then "
        "those of the given order in every pass of principled learning (default: auto, by cross-fitting)",
    )
    model.add_argument(
        "--from", dest="source", metavar="MODEL", help="fine-tune this model (folder or Hub repository) instead"
    )
    add_revision(model, "the model of --from")
    model.add_argument(
        "--freeze",
        action="append",
        default=[],
        metavar="WHAT",
        help="with --from: freeze tables, encoder, output, or a module, parameter or pattern; may be repeated",
    )
    model.add_argument(
        "--reinitialize",
        action="store_true",
        help="with --from: allow lists with other columns; weights that read them are re-initialized",
    )
    output.add_argument("--output-dir", required=True, metavar="RUN", help="folder for checkpoints and the model")
    output.add_argument("--plots", action="store_true", help="draw RUN/plots/training.png at every evaluation")
    add_training_options(train, groups)
    train.set_defaults(run=run, parser=train)


def run(options: argparse.Namespace) -> None:
    """Trains."""
    _check_options(options)
    if options.on_top_of:
        _refuse_other_scores(options.data)
    with show_options_with_hyphens():
        rate = ["--learning_rate", str(ON_TOP_LEARNING_RATE)] if options.on_top_of else []
        arguments = parse_training_arguments(options, rate)
        _refuse_earlier_run(Path(options.output_dir), arguments.resume_from_checkpoint)
        _train(options, arguments)


def _train(options: argparse.Namespace, arguments: Any) -> None:
    from transformers import set_seed

    from hf_rerank.data.loading import load_lists
    from hf_rerank.evaluation import evaluate, evaluate_orders
    from hf_rerank.evaluation.tables import results_table
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.training import PlotCallback, RerankTrainer

    disable_short_progress_bars()
    # With several processes only the first prints.
    say = print if arguments.process_index == 0 else _nothing
    plots = PlotCallback() if options.plots else None
    if options.model:
        reranker_classes(options.model)  # a wrong name is reported before lists are read
    folder = lists_folder(options.data)
    lists = load_lists(folder)
    train, validation = _choose_splits(lists, options)
    set_seed(arguments.seed)
    about: dict[str, Any] = {}
    if options.source:
        model, processor, report = _fine_tune(options, train, lists.schema)
        say(report)
    else:
        model, processor, train, about = _make_model(options, lists, train, validation, arguments)
        if about:
            say(_describe_trees(about["on_top_of"]))
        elif lists.schema.initial_score is not None and "initial_score" not in parse_settings("--set", options.set):
            say(_describe_unread_score(lists.schema.initial_score))
    choices: dict[str, Any] = {name: getattr(arguments, name) for name in ("no_click", "gain", "click_above")}
    choices["ks"] = arguments.metric_ks
    rows: dict[str, Any] = {}
    if validation is not None:
        rows = evaluate_orders(processor, validation, **choices)
        if options.source:
            rows["before"] = evaluate(model, processor, validation, **choices)
    trainer = RerankTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=[plots] if plots else None,
    )
    trainer.results.update(describe_initial_ranker(folder) | about)
    if validation is not None:
        trainer.results["orders"] = {"validation": {"initial": rows["initial"]}}
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if validation is not None:
        metrics = trainer.evaluate(validation, metric_key_prefix="validation")
        measured = {name.removeprefix("validation_"): value for name, value in metrics.items()}
        rows[options.model or "fine-tuned"] = measured
    trainer.save_model(arguments.output_dir)
    if validation is None:
        say(f"\ntrained on all {len(train):,} lists: none are left to evaluate the model on")
    else:
        say(f"\nOn the validation split:\n{results_table(rows)}\n")
    say(f"{_describe_checkpoint(trainer)}\nmodel in {arguments.output_dir}")
    if plots:
        say(f"figure in {plots.drawn}" if plots.drawn else "no figure: the training logged nothing to draw")


def _nothing(*_: Any) -> None:
    """Prints nothing; used in place of ``print``."""


def _choose_splits(lists: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """Chooses the lists to train on, and those to choose the best checkpoint on (None: none)."""
    from datasets import concatenate_datasets

    found = {split: lists[split] for split in ("train", "validation") if split in lists and len(lists[split])}
    if "train" not in found:
        raise InputError(f"{options.data} has no lists in its train split: prepare more lists")
    if options.train_on == "all":
        return concatenate_datasets(list(found.values())), None
    if "validation" not in found:
        raise InputError(
            f"{options.data} has no lists in its validation split: prepare more lists, or give --train-on all, which "
            "chooses no best checkpoint"
        )
    return found["train"], found["validation"]


def _describe_checkpoint(trainer: Any) -> str:
    """Describes which checkpoint the model is."""
    state, metric = trainer.state, trainer.args.metric_for_best_model
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        return f"the model is that of step {state.best_global_step} of {state.global_step}, the best by {metric}"
    return f"no checkpoint was chosen as the best: the model is that of the last step, {state.global_step}"


def _refuse_earlier_run(run: Path, resume: Any) -> None:
    """Refuses a folder that contains a finished model or checkpoints, unless the training resumes from one.

    Raises:
        InputError: The folder contains such files; the message names them.
    """
    if resume or not run.is_dir():
        return
    checkpoints = sorted(path.name for path in run.glob("checkpoint-*") if path.is_dir())
    finished = [name for name in ("config.json", "model.safetensors", "results.json") if (run / name).exists()]
    if finished or checkpoints:
        raise InputError(
            f"{run} contains {'a finished model' if finished else 'checkpoints of another training'} "
            f"({', '.join([*finished, *checkpoints][:3])}): choose another folder, remove it, or resume with "
            "--resume-from-checkpoint last"
        )


def _check_options(options: argparse.Namespace) -> None:
    if bool(options.model) == bool(options.source):
        raise InputError("give either --model NAME for a new model, or --from MODEL to fine-tune one")
    if options.trees_read_order and not options.on_top_of:
        raise InputError("--trees-read-order goes with --on-top-of only: see hf-rerank train --help")
    of_new, of_saved = ("preset", "set", "on_top_of"), ("freeze", "reinitialize", "revision")
    refused, goes_with = (of_new, "--model") if options.source else (of_saved, "--from")
    for name in refused:
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} goes with {goes_with} only: see hf-rerank train --help")
    if options.train_on == "all":
        if options.on_top_of:
            raise InputError(
                "--on-top-of chooses the number of trees on validation lists, and --train-on all leaves none: leave "
                "one of them out"
            )
        for name in _OF_EVALUATION:
            if name in list_given_options(options):
                raise InputError(
                    f"--{name.replace('_', '-')} is about evaluations during training, and --train-on all leaves no "
                    "lists for these: leave it out"
                )
    if options.source:
        model_options(options.source, options.revision)  # a revision of a folder is reported before lists are read
        if Path(options.source).exists() and Path(options.source).resolve() == Path(options.output_dir).resolve():
            raise InputError(
                f"--output-dir {options.output_dir} is the folder of the --from model, which would be overwritten: "
                "give another folder"
            )


def _refuse_other_scores(data: str) -> None:
    """Refuses to start from trees if the lists have scores of an earlier ranker; reads the schema only."""
    from hf_rerank.data.prepared import SCHEMA_FILE
    from hf_rerank.schema import ListSchema

    column = ListSchema.load(lists_folder(data) / SCHEMA_FILE).initial_score
    if column is not None:
        raise InputError(
            f"{data} has scores of an earlier ranker (initial_score of the schema: column {column!r}), and "
            "--on-top-of would start from others: to start from these, replace --on-top-of by --set "
            "initial_score=start; to start from trees, prepare the lists with a schema that names no initial_score"
        )


def _make_model(
    options: argparse.Namespace, lists: Any, train: Any, validation: Any, arguments: Any
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Makes a new model, its processor, its training lists, and the record of the trees it starts from."""
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.processing import ListProcessor
    from hf_rerank.training.starting_point import calibrate_for_training, match_unknown_values

    config_class, model_class = reranker_classes(options.model)
    processor = ListProcessor.from_lists(train, schema=lists.schema)
    about: dict[str, Any] = {}
    overrides = parse_settings("--set", options.set)
    if options.on_top_of:
        from hf_rerank.initial_rankers.on_top import fit_on_top

        # A model that does not read the given order must not get it through the trees.
        ordered = {"yes": True, "no": False}.get(options.trees_read_order)
        if overrides.get("position_input") == "none":
            if ordered:
                raise InputError(
                    "--trees-read-order yes would give the model the order that --set position_input=none leaves out: "
                    "use only one of them"
                )
            ordered = False
        on_top = fit_on_top(processor, train, validation, with_position=ordered)
        processor, train, about = on_top.processor, on_top.train, {"on_top_of": on_top.settings}
        # Trees cannot see how an item compares with the others; presets keep their published inputs.
        defaults = {"initial_score": "start"} | ({} if options.preset else {"relative_features": True})
        overrides = {**defaults, **overrides}
    if options.preset:
        config = config_class.preset(options.preset, processor.schema, **overrides)
    else:
        config = config_class.for_schema(processor.schema, **overrides)
    calibrate_for_training(config, processor, train, arguments)
    if validation is None and config.unknown_rate is None and len(lists.get("validation", ())):
        # The rate that the trainer would find with the validation split held out: new lists will have the same.
        match_unknown_values(
            config, ListProcessor.from_lists(lists["train"], schema=lists.schema), lists["validation"]
        )
    return model_class(config), processor, train, about


def _describe_unread_score(column: str) -> str:
    return (
        f"the earlier ranker's score (initial_score of the schema: column {column!r}) is not read: --set "
        "initial_score=feature reads it as one more number, --set initial_score=start also starts training from it; "
        "--set initial_score=none leaves it out without this message"
    )


def _describe_trees(settings: dict[str, Any]) -> str:
    return (
        f"lambdamart: {settings['trees']} trees of {settings['leaves']} leaves, NDCG@10 "
        f"{settings['validation_ndcg@10']:.4f} on the validation split; training lists are scored by "
        f"{settings['folds']}-fold cross-fitting; the trees {'read' if settings['with_position'] else 'do not read'} "
        "the given order"
    )


def _fine_tune(options: argparse.Namespace, train: Any, schema: Any) -> tuple[Any, Any, str]:
    """Adapts a trained model to these lists; returns it, its processor and a report."""
    from hf_rerank.inference.reranker import Reranker
    from hf_rerank.storage.hub_download import find_weights_folder
    from hf_rerank.training import adapt, freeze

    at = model_options(options.source, options.revision)
    find_weights_folder(options.source, **at)  # refuses an exported graph
    saved = Reranker.from_pretrained(options.source, **at)
    reranker, report = adapt(saved, train, schema, reinitialize=options.reinitialize)
    lines = [f"from {options.source}:", str(report)]
    if options.freeze:
        lines.append(f"frozen: {', '.join(freeze(reranker.model, *options.freeze))}")
    return reranker.model, reranker.processor, "\n".join(lines)
