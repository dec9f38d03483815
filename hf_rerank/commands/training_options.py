"""The options of ``RerankTrainingArguments`` on the command line: help, parsing and messages.

``train``, ``compare`` and ``tune`` accept all of them. ``train --help`` shows the most used and imports nothing slow;
``--help-all`` lists every one. Help and messages write them with hyphens; underscores are accepted.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, NoReturn

from hf_rerank.commands.parsing import option_names
from hf_rerank.errors import InputError, TrainingStopped, suggestion

# Group -> option, its value, help. A test compares the names with RerankTrainingArguments.
SHOWN: dict[str, list[tuple[str, str, str]]] = {
    "principles": [
        (
            "principled",
            "NAME",
            "preset of principled learning: augmented, scaled, paper, reference, none, r_drop or augmentation "
            "(default: augmented)",
        ),
        ("principled-kwargs", "JSON", "settings of the preset to override, such as '{\"convergence_weight\": 10}'"),
    ],
    "optimization": [
        ("task-loss", "NAME", "task loss; own: the loss of the model's paper (default: that of the config)"),
        ("num-train-epochs", "N", "passes over the training lists (default: 5 to 40, by the number of lists)"),
        ("learning-rate", "RATE", "peak learning rate (default: 0.001; with --on-top-of 0.0003)"),
        (
            "per-device-train-batch-size",
            "N",
            "lists per batch on each device (default: 16 to 256, by the number of lists)",
        ),
        ("weight-decay", "X", "weight decay of AdamW (default: 0)"),
        ("eval-strategy", "WHEN", "evaluate on the validation split: no, steps or epoch (default: epoch)"),
        (
            "metric-for-best-model",
            "NAME",
            "metric that chooses the best checkpoint (default: loss, if it is corrected for position bias, otherwise "
            "ndcg@10)",
        ),
        ("seed", "N", "random seed (default: 42)"),
    ],
    "output": [
        (
            "resume-from-checkpoint",
            "WHICH",
            "last: the newest checkpoint of RUN; auto: that, if there is one; or the folder of a checkpoint",
        ),
        ("save-total-limit", "N", "checkpoints to keep, 0: all; the best is always kept (default: 2)"),
    ],
}
# Fields that cannot be set on the command line, or that have a separate option.
_LEFT_OUT = {"output_dir", "local_rank"}


class _Forward(argparse.Action):
    """Collects an option and its value unchanged."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.forwarded = [*namespace.forwarded, option_string, values]


class _HelpAll(argparse.Action):
    """Prints the help with all training options and exits."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.print_help()
        print(f"\n{format_all_options()}", end="")
        parser.exit()


def add_training_options(parser: argparse.ArgumentParser, groups: dict[str, Any]) -> None:
    """Adds the options of ``SHOWN`` to their groups, and ``--help-all``."""
    parser.set_defaults(forwarded=[])
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, help="show this help and every option of RerankTrainingArguments"
    )
    for group, options in SHOWN.items():
        for name, value, text in options:
            shown: dict[str, Any] = {"action": _Forward, "dest": "forwarded", "default": argparse.SUPPRESS}
            groups[group].add_argument(f"--{name}", metavar=value, help=text, **shown)
            if "-" in name:
                parser.add_argument(f"--{name.replace('-', '_')}", help=argparse.SUPPRESS, **shown)


def format_all_options() -> str:
    """Formats the help of the options of ``RerankTrainingArguments`` that are not in ``SHOWN``, in three groups."""
    from hf_rerank.training.arguments import RerankTrainingArguments
    from hf_rerank.training.supported_options import REFUSED, SUPPORTED

    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    own = RerankTrainingArguments.__annotations__
    groups = {
        "own": parser.add_argument_group("training re-rankers"),
        "supported": parser.add_argument_group("transformers.TrainingArguments, tested with re-rankers"),
        "others": parser.add_argument_group("passed to transformers as they are"),
    }
    shown = {name.replace("-", "_") for options in SHOWN.values() for name, _, _ in options}
    for field in fields(RerankTrainingArguments):
        if field.name in shown | _LEFT_OUT | REFUSED.keys():
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        text = use_hyphens(" ".join(field.metadata.get("help", "").split()))
        group = "own" if field.name in own else "supported" if field.name in SUPPORTED else "others"
        if default not in (None, "", MISSING):
            text += f" (default: {getattr(default, 'value', default)})"
        groups[group].add_argument(f"--{field.name.replace('_', '-')}", metavar="VALUE", help=text.strip())
    return parser.format_help()


def parse_training_arguments(options: argparse.Namespace, defaults: Sequence[str] = ()) -> Any:
    """Parses the training options of ``hf-rerank train``.

    Args:
        options: With ``output_dir``, ``forwarded``, ``others``, ``command`` and ``parser``.
        defaults: Options with their values; those given on the command line take precedence.

    Returns:
        ``RerankTrainingArguments``.

    Raises:
        InputError: An option is unknown, or a value is wrong.
    """
    parser = _make_parser()
    arguments, others = parser.parse_args_into_dataclasses(
        ["--output_dir", options.output_dir, *defaults, *options.forwarded, *options.others],
        return_remaining_strings=True,
    )
    _refuse_unknown(others, parser, options)
    return arguments


def parse_given_options(options: argparse.Namespace, *, decided: tuple[str, ...]) -> dict[str, Any]:
    """Parses the training options of ``hf-rerank compare`` and ``tune``: those given, without any defaults.

    Args:
        options: With ``others`` (the arguments that the command itself does not know), ``command`` and ``parser``.
        decided: Training options that the command decides itself; giving one is an error.

    Returns:
        Field of ``RerankTrainingArguments`` -> value.

    Raises:
        InputError: An option is unknown or decided by the command, or a value is wrong.
    """
    from hf_rerank.training.arguments import RerankTrainingArguments

    parser = _make_parser()
    values, others = parser.parse_known_args(options.others)
    _refuse_unknown(others, parser, options)
    given = {argument.split("=", 1)[0] for argument in options.others if argument.startswith("--")}
    # Every spelling of a flag sets the same field.
    names = [action.dest for action in parser._actions if given & set(action.option_strings)]
    for name in names:
        if name in decided:
            raise InputError(f"--{name.replace('_', '-')} is decided by {options.command} itself: leave it out")
    found = {name: getattr(values, name) for name in names}
    RerankTrainingArguments("unused", **found)  # wrong values are reported before any work
    return found


def _make_parser() -> Any:
    """An argparse parser of ``RerankTrainingArguments`` that raises an ``InputError``."""
    from transformers import HfArgumentParser

    from hf_rerank.training.arguments import RerankTrainingArguments

    class OptionParser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
            known = re.findall(r"[\w-]+", wrong[2]) if wrong else []
            raise InputError(
                re.sub(r"--\w+/(--[\w-]+)", r"\1", message) + (suggestion(wrong[1], known) if wrong else "")
            )

    return OptionParser(RerankTrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]


def _refuse_unknown(others: Sequence[str], parser: Any, options: argparse.Namespace) -> None:
    if others:
        names = {name.replace("_", "-") for name in option_names(parser)}
        known = sorted(names | set(option_names(options.parser)))
        meant = suggestion(others[0].replace("_", "-"), known)
        raise InputError(f"unknown argument {others[0]!r} of {options.command}{meant}")


def list_given_options(options: argparse.Namespace) -> set[str]:
    """Lists the training options that were given to ``train``, as fields of ``RerankTrainingArguments``."""
    words = [*options.forwarded, *options.others]
    return {word[2:].partition("=")[0].replace("-", "_") for word in words if str(word).startswith("--")}


def use_hyphens(message: str) -> str:
    """Rewrites a message about fields of ``RerankTrainingArguments`` to name the command line's options."""
    from hf_rerank.training.arguments import RerankTrainingArguments

    names = [field.name for field in fields(RerankTrainingArguments)]
    joined = "|".join(name for name in names if "_" in name)
    plain = "|".join(name for name in names if "_" not in name)
    pattern = rf"(?<![\w/.'\"-])(?:{joined})(?![\w/.'\"(])|^(?:{plain})(?= is |=)"
    return re.sub(pattern, lambda found: f"--{found[0].replace('_', '-')}", message)


@contextmanager
def show_options_with_hyphens() -> Iterator[None]:
    """Makes errors and warnings name options as the command line does: ``--learning-rate``, not ``learning_rate``."""
    former = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {use_hyphens(str(message))}\n"
    try:
        yield
    except InputError as error:
        raise InputError(use_hyphens(str(error))) from error
    except TrainingStopped as error:
        raise TrainingStopped(use_hyphens(str(error))) from error
    finally:
        warnings.formatwarning = former
