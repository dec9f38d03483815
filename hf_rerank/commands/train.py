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
    model, processor = _fine_tuned(options, lists) if options.source else _new(options, lists)
    choices: dict[str, Any] = {"ks": arguments.metric_ks, "no_click": arguments.no_click}
    rows: dict[str, Any] = evaluate_orders(processor, lists["validation"], **choices)
    if options.source:
        rows["before"] = evaluate(model, processor, lists["validation"], **choices)
    trainer = RerankTrainer(
        model=model,
        args=arguments,
        train_dataset=lists["train"],
        eval_dataset=lists["validation"],
        processing_class=processor,
        callbacks=[plots] if plots else None,
    )
    trainer.results.update(about_initial_ranker(folder))
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
    of_new, of_saved = ("preset", "set"), ("freeze", "reinitialize", "revision")
    refused, goes_with = (of_new, "--model") if options.source else (of_saved, "--from")
    for name in refused:
        if getattr(options, name):
            raise InputError(f"--{name} goes with {goes_with} only: see hf-rerank train --help")
    if options.source:
        model_options(options.source, options.revision)  # a revision of a folder is told before lists are read
        if Path(options.source).exists() and Path(options.source).resolve() == Path(options.output_dir).resolve():
            raise InputError(
                f"--output-dir {options.output_dir} is the model of --from itself, which would be overwritten: give "
                "another folder"
            )


def _new(options: argparse.Namespace, lists: Any) -> tuple[Any, Any]:
    """A new model, and the processor that learned from the training lists."""
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.processing import ListProcessor

    config_class, model_class = reranker_classes(options.model)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)
    overrides = settings_of("--set", options.set)
    if options.preset:
        return model_class(config_class.preset(options.preset, processor.schema, **overrides)), processor
    return model_class(config_class.for_schema(processor.schema, **overrides)), processor


def _fine_tuned(options: argparse.Namespace, lists: Any) -> tuple[Any, Any]:
    """A trained model made ready for these lists, and its processor; prints what was kept and added."""
    from hf_rerank.inference.reranker import Reranker
    from hf_rerank.training import adapt, freeze

    saved = Reranker.from_pretrained(options.source, **model_options(options.source, options.revision))
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
    arguments, others = parser.parse_args_into_dataclasses(
        ["--output_dir", options.output_dir, *options.others], return_remaining_strings=True
    )
    if others:
        known = [*option_names(parser), *option_names(options.parser)]
        raise InputError(f"unknown argument {others[0]!r} of train{suggestion(others[0], known)}")
    return arguments
