"""Raw lists, as a dataset, a stream or several of them by name, in the form that the trainer's data loaders read."""

from __future__ import annotations

from typing import Any

from hf_rerank.errors import InputError
from hf_rerank.processing.collator import RerankCollator
from hf_rerank.training.arguments import RerankTrainingArguments
from hf_rerank.training.encoded_cache import CachedLists
from hf_rerank.training.encoded_lists import EncodedLists, FilledLists
from hf_rerank.training.streams import EncodedStream


def encode_lists(
    lists: Any, collator: RerankCollator, args: RerankTrainingArguments, *, train: bool, use_cache: bool
) -> Any:
    """Wraps raw lists as datasets of encoded lists.

    Args:
        lists: A ``datasets`` Dataset or IterableDataset; for evaluation, also a dict of them by name. Encoded lists, a
            name, and None are returned unchanged.
        collator: Encodes the lists.
        args: Training arguments.
        train: Whether the lists are trained on.
        use_cache: Whether ``args.encoded_cache`` is used: for lists that are read repeatedly.

    Raises:
        InputError: An unsupported type; no lists; or options that do not work with a stream.
    """
    from datasets import Dataset, IterableDataset

    if lists is None or isinstance(lists, str | EncodedLists | CachedLists | FilledLists | EncodedStream):
        return lists
    if isinstance(lists, dict) and not train:
        return {
            name: encode_lists(part, collator, args, train=train, use_cache=use_cache) for name, part in lists.items()
        }
    cache = args.encoded_cache if use_cache else None
    if isinstance(lists, IterableDataset):
        return _encode_stream(lists, collator, args, train=train, cache=cache)
    if isinstance(lists, Dataset):
        if not len(lists):
            raise InputError(
                f"the dataset to {'train' if train else 'evaluate'} on has no lists: expected at least one"
            )
        encoded = EncodedLists(lists, collator) if cache is None else CachedLists(cache, lists, collator)
        several = not train and args.world_size > 1
        return FilledLists(encoded, args.eval_batch_size * args.world_size) if several else encoded
    if isinstance(lists, dict):
        raise InputError(f"train_dataset is a dict of {', '.join(lists)}: choose one split, such as lists['train']")
    raise InputError(f"expected a datasets Dataset or IterableDataset of lists, got {type(lists).__name__}")


def _encode_stream(
    lists: Any, collator: RerankCollator, args: RerankTrainingArguments, *, train: bool, cache: str | None
) -> EncodedStream:
    if cache is not None:
        raise InputError(
            "encoded_cache needs a dataset, and these lists are a stream: leave it out, or load the lists with "
            "streaming=False"
        )
    config: Any = args.accelerator_config
    if args.world_size > 1 and (config.dispatch_batches or config.split_batches):
        raise InputError(
            "dispatch_batches and split_batches of accelerator_config would give the lists of a stream to other "
            "processes: leave them off"
        )
    if args.auto_find_batch_size:
        raise InputError("auto_find_batch_size would lose the position in a stream: set the batch size yourself")
    seed = args.seed if args.data_seed is None else args.data_seed
    shuffled = train and args.train_sampling_strategy != "sequential"
    return EncodedStream(
        lists,
        collator,
        seed=seed if shuffled else None,
        window=args.stream_window,
        endless=train,
        batch_size=args.train_batch_size if train else args.eval_batch_size,
        processes=args.world_size,
    )
