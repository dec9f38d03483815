"""A simulator of PRM Public: the same raw text, and the ground truth that no log contains.

The world
---------
A list resembles the result of a retrieval stage: items around one price level, more of one style than of its opposite
(the theme of the list), of a few favoured categories, shown to one user in the **display order**. The slots of a raw
line are in that order, so slot ``i`` is also display position ``i``. Clicks are drawn by one rule::

    click_i ~ Bernoulli(examination[position_i] * attraction_i)

    attraction_i = sigmoid( bias + propensity                                  of the user and of the list
                            + quality_weight * quality_i                       of the item
                            + match_weight * match_i                           of the item for the user
                            + context_strength * (                             of the item among the others:
                                theme_weight * style_i * m_i                     m_i: mean style of the others
                                - price_weight * |gap_i - price_taste|           gap_i: price_i less the list's mean
                                                                                 price, in units of ``price_spread``
                                - crowding_weight * ln n_i ) )                   n_i: items of its category, with i

This is the position-based click model. ``click_model`` can name two others, in which examination also depends on
earlier clicks, so that there is no examination curve by position: ``cascade``, in which the reader goes down the list
and leaves with the first click, and ``user_browsing``, in which a position is examined with probability
``examination[positions since the last click, or since the top]``.

Attraction depends on the *set* of items in the list, never on their order. The three context terms mean: an item in
the style of most of the list is attractive; its price relative to the others should match this user's taste; and
items of a crowded category take clicks from each other. A model that scores items one by one can only guess them: the
theme changes its sign from list to list, and the rank of a price depends on the others. The examination curve is a
mixture of readers: some examine the first item only, some go down the list and leave it with a constant probability at
each position, some examine everything.

``mode="order"`` is a second world, in which an item below its rivals is less attractive. The formula above then
gives ``base_attraction``, and with the list in a given order::

    attraction_i(order) = base_attraction_i * same_category_decay ** rivals_above_i(order)

where ``rivals_above_i`` counts the items above item ``i`` that are of its category and have at least its base
attraction. The ground truth of that world is a function of the list *and* the order: ``order_click_probabilities``.

A history
---------
With ``history_length`` above 0 a user has a personal taste, which the segment and ``user_1`` do not reveal::

    price_taste = user_1 - 2 + personal_taste * t                                          t: one per user
    match_i     = 0.6 * affinity[segment, category_i] + 0.8 * (
                      personal_taste * liking[user, category_i] + sqrt(1 - personal_taste^2) * noise_i )

``affinity``, ``t``, ``liking`` and the noise are standard normal. Without a history ``personal_taste`` counts as 0.
The history of a list contains this user's clicks in earlier lists of the same world, under the same click rule, newest
first; ``prm_public_history`` describes how it is drawn. So the price gaps of a history reveal the price taste, and its
categories the liking, each with the noise of random clicks: with the defaults, ``user_1`` explains 49 % of the
variance of the price taste; together with the mean price gap of 10 clicks it explains 72 %, of 30 clicks 85 %. The
earlier clicks are drawn independently for each list, even for lists of the same user; no list of the file is in the
history of another. Tastes do not change, so the minutes carry no information.

Selection
---------
PRM Public has no list without a click. A simulated list without a click is discarded, and another list (user, items,
clicks) is drawn. The lists in the file are therefore a selected sample: users with higher propensity, more attractive
items, and more clicks than ``examination * attraction`` gives for the same lists.

Calibration of the defaults
---------------------------
The defaults are fitted to the clicks per list and per position of the 1,000 lists of labels that the authors of PRM
publish (``scripts/experiments/simulator_calibration.py`` measures the fit), for ``mode="set"`` (in ``mode="order"``
the same parameters give about 1.76 clicks per list instead of 1.88). Everything else is invented.

The observed columns
--------------------
``user_0`` is the user's segment, ``user_1`` the price taste, ``user_2`` a hint of the propensity; ``item_id`` is the
item, ``item_1`` a leaf category, ``item_3`` the category; ``item_2`` and ``item_4`` carry no information. Dense
columns are noisy measurements, of roughly mean 0 and standard deviation 1; quality and match are never observed
exactly:

========== ===============================  ============ ==========================================
basic_0/1  style                            optional_0/1 style, noisier
basic_2/5  price                            optional_2   price, noisier
basic_3    quality                          optional_3   a rare flag without meaning (two values)
basic_4    match                            optional_4/5 quality, match, noisier
basic_6    quality and match together       optional_6   log popularity of the item
                                            optional_7   propensity, the same for the whole list
                                            optional_8-11 without meaning, one of them heavy-tailed
========== ===============================  ============ ==========================================

In a share ``null_rate`` of the lines some values are ``null``, at random and independent of everything else.

A raw line has no field for a history: its columns are in the file of ground truth, although they are observed.
``history_item_id``, ``history_item_1`` and ``history_item_3`` of the clicked items, ``history_basic_2`` their price
and ``history_price_gap`` their gap in the list where they were clicked, measured like ``basic_2``, and
``history_minutes_ago``; never null.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from hf_rerank.data.simulation.click_process import check_parameters, examination_curve
from hf_rerank.errors import InputError

CLICK_MODELS = ("position", "cascade", "user_browsing")


@dataclass(frozen=True)
class PRMWorld:
    """The parameters of the simulated world of PRM Public.

    Clicks are drawn with probability ``examination[position] * attraction``; attraction is the sigmoid of the terms
    that the parameters below weight. The docstring of ``hf_rerank.data.simulation.prm_public_world`` has the formulas.

    Args:
        click_model: ``"position"``, ``"cascade"`` or ``"user_browsing"``; the last two in ``mode="set"`` and without a
            history.
        mode: ``"set"`` (attraction depends on the set of items) or ``"order"`` (on their order too).
        list_length: items in a list, at least 2.
        n_items: items in the world, at least ``pool_size``.
        pool_size: number of items from which a list is retrieved, at least ``list_length``.
        lists_per_user: mean number of lists per user.
        null_rate: share of the lines with at least one ``null``, in [0, 1].
        bias: level of the attraction, in logits.
        propensity_sd: standard deviation of the propensity, in logits, half of its variance from the user and half
            from the list. It makes the clicks per list over-dispersed.
        quality_weight, match_weight: weights of the terms of the item itself.
        context_strength: factor on all three context terms; with 0 pointwise models are correct.
        theme_weight, price_weight, crowding_weight: weights of the context terms.
        theme_sd: standard deviation, over lists, of the pull of the theme on the mean style (styles have 1).
        price_spread: standard deviation of the prices within a list, whose level is drawn from -1.5..1.5.
        feature_noise: standard deviation of the noise of the better measurements of quality and match (which have
            standard deviation 1 themselves); the noisier ones have twice as much.
        initial_noise: standard deviation of the noise of the initial ranker, which sorts by quality + match + noise.
        display_noise: the same for the ranker that made the display order.
        looks_at_first_only, looks_at_all: shares of the readers; the remaining readers go down the list.
        patience: mean number of positions that the readers who go down the list examine; they examine position ``p``
            (from 0) with probability ``exp(-p / patience)``.
        same_category_decay: factor on an item's attraction for each rival above it, in (0, 1]; ``mode="order"`` only.
        history_length: mean number of earlier clicks in the history of a list; 0: lists have no history.
        personal_taste: share of a user's taste that only the history reveals, in [0, 1]; used only with a history.
    """

    click_model: Literal["position", "cascade", "user_browsing"] = "position"
    mode: Literal["set", "order"] = "set"
    list_length: int = 30
    n_items: int = 2000
    pool_size: int = 240
    lists_per_user: float = 4.0
    null_rate: float = 0.1
    bias: float = -1.46
    propensity_sd: float = 0.8
    quality_weight: float = 0.5
    match_weight: float = 0.5
    context_strength: float = 1.0
    theme_weight: float = 4.5
    price_weight: float = 0.8
    crowding_weight: float = 0.6
    theme_sd: float = 0.3
    price_spread: float = 0.55
    feature_noise: float = 0.7
    initial_noise: float = 0.8
    display_noise: float = 8.0
    looks_at_first_only: float = 0.38
    looks_at_all: float = 0.24
    patience: float = 8.5
    same_category_decay: float = 0.7
    history_length: float = 0.0
    personal_taste: float = 0.8

    def __post_init__(self) -> None:
        if self.mode not in ("set", "order"):
            raise InputError(f"PRMWorld.mode must be 'set' or 'order', got {self.mode!r}")
        if self.click_model not in CLICK_MODELS:
            raise InputError(
                f"PRMWorld.click_model must be one of {', '.join(CLICK_MODELS)}, got {self.click_model!r}"
            )
        if self.click_model != "position" and (self.mode == "order" or self.history_length):
            raise InputError(
                f"PRMWorld.click_model={self.click_model!r} requires mode='set' and history_length=0, got "
                f"mode={self.mode!r} and history_length={self.history_length}"
            )
        for name in ("list_length", "n_items", "pool_size"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"PRMWorld.{name} must be an integer, got {getattr(self, name)!r}")
        for parameter in fields(self):
            if parameter.name not in ("mode", "click_model") and not np.isfinite(getattr(self, parameter.name)):
                raise InputError(f"PRMWorld.{parameter.name} must be finite, got {getattr(self, parameter.name)}")
        least = {"list_length": 2, "pool_size": self.list_length, "n_items": self.pool_size, "lists_per_user": 1}
        not_negative = (
            "propensity_sd",
            "theme_sd",
            "feature_noise",
            "initial_noise",
            "display_noise",
            "history_length",
        )
        ranges: dict[str, tuple[float, float]] = {name: (low, np.inf) for name, low in least.items()}
        ranges |= dict.fromkeys((*not_negative, "history_length"), (0, np.inf))
        ranges |= dict.fromkeys(("null_rate", "same_category_decay", "personal_taste"), (0, 1))
        check_parameters(self, ranges, above_zero=("same_category_decay",))

    @property
    def examination(self) -> np.ndarray:
        """Probability that each position is examined, [list_length]; 1 at the first position."""
        return examination_curve(self, self.list_length)
