"""``hf-rerank train``: a re-ranker from prepared lists."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from hf_rerank.commands.parsing import (
    about_initial_ranker,
    add_revision,
    lists_folder,
    model_options,
    option_names,
    settings_of,
    without_bars_of_a_moment,
)
from hf_rerank.errors import InputError, suggestion

# A model that starts from good scores is near where it should end: large steps lead away from there.
ON_TOP_LEARNING_RATE = 3e-4


def add(commands: Any) -> None:
    """The options."""
    train = commands.add_parser(
        "train",
        help="train a re-ranker",
        epilog="Every option of RerankTrainingArguments is an option here too, such as --num_train_epochs 5, "
        "--learning_rate 0.001, --per_device_train_batch_size 256, --seed 1, "
        "--resume_from_checkpoint last (or auto: that, or a fresh start; or RUN/checkpoint-100).",
    )
    train.add_argument("--model", metavar="NAME", help="a new model: dlcm, dnn, midnn, pear, prm, raise or setrank")
    train.add_argument(
        "--from", dest="source", metavar="MODEL", help="instead: fine-tune this model, a folder or Hub repository"
    )
    add_revision(train, "the model of --from")
    train.add_argument(
        "--freeze",
        action="append",
        default=[],
        metavar="WHAT",
        help="with --from: tables, encoder, output, or a module, parameter or pattern of the model; may be repeated",
    )
    train.add_argument(
        "--reinitialize",
        action="store_true",
        help="with --from: the lists have other columns; weights that read them are drawn anew",
    )
    train.add_argument("--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists")
    train.add_argument("--output-dir", required=True, metavar="RUN", help="folder for checkpoints and the model")
    train.add_argument("--preset", metavar="NAME", help="published sizes: paper, librerank-ad or librerank-prm")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the model's config"
    )
    train.add_argument(
        "--on-top-of",
        choices=("lambdamart",),
        metavar="RANKER",
        help="lambdamart: first train boosted trees, start from their scores and save them with the model; needs "
        "LightGBM, which ranking then does not",
    )
    train.add_argument(
        "--trees-read-order",
        choices=("auto", "yes", "no"),
        help="with --on-top-of: whether the trees also read at which position an item is given; their scores then "
        "stay those of the given order in every pass of principled learning (default: auto, by cross-fitting)",
    )
    train.add_argument("--plots", action="store_true", help="draw RUN/plots/training.png at every evaluation")
    train.set_defaults(run=run, parser=train)


def run(options: argparse.Namespace) -> None:
    """Trains."""
    _check_source(options)
    arguments = _training_arguments(options)
    from transformers import set_seed

    from hf_rerank.data.loading import load_lists
    from hf_rerank.evaluation import evaluate, evaluate_orders
    from hf_rerank.evaluation.tables import results_table
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.training import PlotCallback, RerankTrainer

    without_bars_of_a_moment()
    plots = PlotCallback() if options.plots else None
    if options.model:
        reranker_classes(options.model)  # a wrong name is told before lists are read
    folder = lists_folder(options.data)
    lists = load_lists(folder)
    for split in ("train", "validation"):
        if not len(lists[split]):
            raise InputError(f"{options.data} has no list in its {split} split: prepare more lists")
    set_seed(arguments.seed)
    about: dict[str, Any] = {}
    train = lists["train"]
    if options.source:
        model, processor = _fine_tuned(options, lists)
    else:
        model, processor, train, about = _new(options, lists, arguments)
    choices: dict[str, Any] = {name: getattr(arguments, name) for name in ("no_click", "gain", "click_above")}
    choices["ks"] = arguments.metric_ks
    rows: dict[str, Any] = evaluate_orders(processor, lists["validation"], **choices)
    if options.source:
        rows["before"] = evaluate(model, processor, lists["validation"], **choices)
    trainer = RerankTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=lists["validation"],
        processing_class=processor,
        callbacks=[plots] if plots else None,
    )
    trainer.results.update(about_initial_ranker(folder) | about)
    trainer.results["orders"] = {"validation": {"initial": rows["initial"]}}
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    metrics = trainer.evaluate(lists["validation"], metric_key_prefix="validation")
    trainer.save_model(arguments.output_dir)
    rows[options.model or "fine-tuned"] = {name.removeprefix("validation_"): value for name, value in metrics.items()}
    print(f"\nOn the validation split:\n{results_table(rows)}\n\nmodel in {arguments.output_dir}")
    if plots and trainer.is_world_process_zero():
        print(f"picture in {plots.drawn}" if plots.drawn else "no picture: the training logged nothing to draw")


def _check_source(options: argparse.Namespace) -> None:
    if bool(options.model) == bool(options.source):
        raise InputError("give --model NAME for a new model, or --from MODEL to fine-tune one: one of the two")
    if options.trees_read_order and not options.on_top_of:
        raise InputError("--trees-read-order goes with --on-top-of only: see hf-rerank train --help")
    of_new, of_saved = ("preset", "set", "on_top_of"), ("freeze", "reinitialize", "revision")
    refused, goes_with = (of_new, "--model") if options.source else (of_saved, "--from")
    for name in refused:
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} goes with {goes_with} only: see hf-rerank train --help")
    if options.source:
        model_options(options.source, options.revision)  # a revision of a folder is told before lists are read
        if Path(options.source).exists() and Path(options.source).resolve() == Path(options.output_dir).resolve():
            raise InputError(
                f"--output-dir {options.output_dir} is the model of --from itself, which would be overwritten: give "
                "another folder"
            )


def _new(options: argparse.Namespace, lists: Any, arguments: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """A new model, its processor, the lists to train it on, and what the results say of the trees it starts from."""
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.processing import ListProcessor
    from hf_rerank.training import calibrate_initial_score

    config_class, model_class = reranker_classes(options.model)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    train, about = lists["train"], {}
    overrides = settings_of("--set", options.set)
    if options.on_top_of:
        from hf_rerank.initial_rankers.on_top import fit_on_top

        # A model that does not read the given order shall not get it through the trees.
        ordered = {"yes": True, "no": False}.get(options.trees_read_order)
        if overrides.get("position_input") == "none":
            ordered = False
        on_top = fit_on_top(processor, train, lists["validation"], with_position=ordered)
        processor, train, about = on_top.processor, on_top.train, {"on_top_of": on_top.settings}
        # What trees cannot see is how an item compares with the others; published sizes stay as published.
        defaults = {"initial_score": "start"} | ({} if options.preset else {"relative_features": True})
        overrides = {**defaults, **overrides}
        print(_describe_trees(on_top.settings))
    if options.preset:
        config = config_class.preset(options.preset, processor.schema, **overrides)
    else:
        config = config_class.for_schema(processor.schema, **overrides)
    if config.initial_score != "none":
        # The loss of the training is that of the arguments, and decides what the scores are calibrated for.
        config.task_loss = arguments.task_loss or arguments.objective().task_loss or config.task_loss
        calibrate_initial_score(config, processor, train)
    return model_class(config), processor, train, about


def _describe_trees(settings: dict[str, Any]) -> str:
    return (
        f"lambdamart: {settings['trees']} trees of {settings['leaves']} leaves, NDCG@10 "
        f"{settings['validation_ndcg@10']:.4f} on the validation split; training lists are scored by "
        f"{settings['folds']}-fold cross-fitting; the trees {'read' if settings['with_position'] else 'do not read'} "
        "the given order"
    )


def _fine_tuned(options: argparse.Namespace, lists: Any) -> tuple[Any, Any]:
    """A trained model made ready for these lists, and its processor; prints what was kept and added."""
    from hf_rerank.inference.reranker import Reranker
    from hf_rerank.storage.hub_download import folder_with_weights
    from hf_rerank.training import adapt, freeze

    at = model_options(options.source, options.revision)
    folder_with_weights(options.source, **at)  # refuses an exported graph
    saved = Reranker.from_pretrained(options.source, **at)
    reranker, report = adapt(saved, lists["train"], lists.schema, reinitialize=options.reinitialize)
    print(f"from {options.source}:\n{report}")
    if options.freeze:
        print(f"frozen: {', '.join(freeze(reranker.model, *options.freeze))}")
    return reranker.model, reranker.processor


def _training_arguments(options: argparse.Namespace) -> Any:
    from transformers import HfArgumentParser

    from hf_rerank.training.arguments import RerankTrainingArguments

    class OptionParser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(message)

    parser = OptionParser(RerankTrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]
    # What is given later takes precedence.
    rate = ["--learning_rate", str(ON_TOP_LEARNING_RATE)] if options.on_top_of else []
    arguments, others = parser.parse_args_into_dataclasses(
        ["--output_dir", options.output_dir, *rate, *options.others], return_remaining_strings=True
    )
    if others:
        known = [*option_names(parser), *option_names(options.parser)]
        raise InputError(f"unknown argument {others[0]!r} of train{suggestion(others[0], known)}")
    return arguments
