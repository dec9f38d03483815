"""``hf-rerank tune``: searches options of a re-ranker and of its training."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

from hf_rerank.commands.parsing import disable_short_progress_bars, lists_folder, parse_settings
from hf_rerank.errors import InputError

# Training options that the search sets itself.
_DECIDED = ("output_dir", "resume_from_checkpoint", "disable_tqdm", "load_best_model_at_end", "principled_kwargs")
# Options with which the loss becomes another quantity.
_SCALE_OF_LOSS = ("task_loss", "position_tower", "propensity_floor")


def add(commands: Any) -> None:
    """Adds the command and its options."""
    tune = commands.add_parser(
        "tune",
        help="search the options of a re-ranker and of its training",
        description="Trains one model per trial, prunes the worst early, and saves the best as a finished "
        "model in DIR/best. The same command resumes a study that was interrupted; more --trials continue it.",
        epilog="Every option of RerankTrainingArguments is an option here too, such as --num-train-epochs 5; options "
        "that are given are not searched.",
    )
    tune.add_argument("--model", required=True, metavar="NAME", help="dlcm, dnn, midnn, pear, prm, raise or setrank")
    tune.add_argument("--data", required=True, metavar="LISTS", help="folder or Hub repository of prepared lists")
    tune.add_argument("--output-dir", required=True, metavar="DIR", help="folder for the study and the best model")
    tune.add_argument("--trials", type=int, default=20, metavar="N", help="trials in the whole study (default: 20)")
    tune.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a fixed option of the model's config"
    )
    tune.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=SPACE",
        help="search a training option, an option of the model's config, or a weight of the principles such as "
        "convergence_weight; SPACE is A,B,C (choices), LOW:HIGH, or LOW:HIGH:log. May be repeated; by default the "
        "learning rate, the sizes of the model and the weights of the principles are searched",
    )
    tune.set_defaults(run=run, parser=tune)


def run(options: argparse.Namespace) -> None:
    """Searches."""
    from hf_rerank.training.tuning import require_optuna, search

    require_optuna()
    from hf_rerank.commands.training_options import parse_given_options

    training = parse_given_options(options, decided=_DECIDED)
    from hf_rerank.data.loading import load_lists
    from hf_rerank.models.auto import reranker_classes
    from hf_rerank.processing import ListProcessor
    from hf_rerank.training import RerankTrainer, RerankTrainingArguments
    from hf_rerank.training.search_spaces import read_spaces, suggest
    from hf_rerank.training.starting_point import calibrate_for_training

    disable_short_progress_bars()
    config_class, model_class = reranker_classes(options.model)
    lists = load_lists(lists_folder(options.data))
    for split in ("train", "validation"):
        if not len(lists[split]):
            raise InputError(f"{options.data} has no lists in its {split} split: prepare more lists")
    arguments = RerankTrainingArguments(options.output_dir, disable_tqdm=True, **training)
    fixed = parse_settings("--set", options.set)
    spaces = read_spaces(options.search, config_class, arguments.objective(), fixed, training)
    processor = ListProcessor.from_lists(lists["train"], schema=lists.schema)

    def model_init(trial: Any = None) -> Any:
        chosen = {} if trial is None else suggest(trial, spaces["model"])
        config = config_class.for_schema(processor.schema, **{**fixed, **chosen})
        # Not dataclasses.replace: new arguments would reset the devices of the trainer that calls this.
        of_trial = copy.copy(arguments)
        for name, value in ({} if trial is None else hp_space(trial)).items():
            setattr(of_trial, name, value)
        return model_class(calibrate_for_training(config, processor, lists["train"], of_trial))

    def hp_space(trial: Any) -> dict[str, Any]:
        weights = suggest(trial, spaces["principles"])
        return suggest(trial, spaces["training"]) | ({"principled_kwargs": weights} if weights else {})

    trainer = RerankTrainer(
        args=arguments,
        train_dataset=lists["train"],
        eval_dataset=lists["validation"],
        processing_class=processor,
        model_init=model_init,
    )
    scales = [name for space in spaces.values() for name in space if name in _SCALE_OF_LOSS]
    if scales and str(trainer.args.metric_for_best_model).endswith("loss"):
        raise InputError(
            f"--search {scales[0]} compares trials by the loss, and losses of different {scales[0]} are not "
            "comparable: give --metric-for-best-model a metric such as ndcg@10, or fix the value"
        )
    configuration = {"model": options.model, "config options": fixed, "spaces": spaces}
    best = search(trainer, hp_space, options.trials, configuration=configuration)
    metric = str(trainer.args.metric_for_best_model)
    print(f"\nbest: trial {best.run_id}, {metric} {best.objective:.4f} on the validation split")
    for name, value in best.hyperparameters.items():
        print(f"  {name} = {value:.4g}" if isinstance(value, float) else f"  {name} = {value}")
    print(f"model in {Path(options.output_dir) / 'best'}")
