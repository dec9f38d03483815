"""A simulator of Ad (Taobao): the same four CSV files, and the ground truth that no log contains.

The world
---------
A list resembles the result of a retrieval stage for one user: ads of a few categories that this user visits, more of
one style than of its opposite (the theme of the list), shown in the **display order** of a noisy ranker. Clicks are
drawn by one rule::

    click_i ~ Bernoulli(examination[position_i] * attraction_i)

    attraction_i = sigmoid( bias + propensity                                  of the user and of the list
                            + quality_weight * quality_i                       of the ad
                            + match_weight * match_i                           of the ad for the user
                            + context_strength * (                             of the ad among the others:
                                theme_weight * style_i * m_i                     m_i: mean style of the others
                                - price_weight * |gap_i - price_taste|           gap_i: ln price_i less the list's mean
                                                                                 ln price, in units of ``price_spread``
                                - crowding_weight * ln n_i ) )                   n_i: ads of its category, with i

So attraction depends on the *set* of ads in the list, never on their order, and a model that scores ads one by one can
only guess the three context terms. A list of one ad has no others: its ``m_i`` is 0. The examination curve is that of
``PRMWorld``: some readers examine the first position only, some go down the list and leave it with a constant
probability at each position, some examine everything.

The parts, and the features that reveal them
---------------------------------------------
All parts below are standard normal, unless stated otherwise.

quality
    ``(campaign part + customer part + own part) / sqrt(3)``: the ids reveal it. A campaign belongs to one customer.
style
    ``sqrt(.5) * brand part + sqrt(.3) * customer part + sqrt(.2) * own part``; an ad without a brand (a share
    ``brandless_rate``; ``NULL``) has a second own part in place of the brand's. 70 % of the other ads have the
    brand of their customer, the rest any brand.
price
    ``exp(5 + .8 * category part + .9 * own part)``, rounded to cents, at least one: three orders of magnitude.
match
    ``0.6 * affinity[segment, category] + 0.8 * (personal_taste * personal + sqrt(1 - personal_taste^2) * noise)``.
    The segment is ``cms_group_id``; ``personal = (liking[user, category] + brand_liking[user, brand]) / sqrt(2)``,
    where ``brand_liking`` is the inner product of two vectors of 4 numbers, halved, and 0 without a brand. Only the
    behaviours of a user reveal the personal part.
price taste
    One value per user. Observed with noise of standard deviation 0.5 and divided into thirds, it is ``pvalue_level``
    (1..3); with noise 1, ``shopping_level`` (1..3). ``new_user_class_level`` (1..4) is the propensity of the user,
    with noise 1, divided into quarters.

In the profile, ``final_gender_code`` and ``age_level`` follow from ``cms_group_id`` (gender 2 has the groups 1..6,
gender 1 the groups 7..12, group 0 is age level 0 and either); ``cms_segid`` and ``occupation`` carry no information. A
share ``missing_level_rate`` of the users has no ``pvalue_level``, the same share no ``new_user_class_level``, and a
share ``no_profile_rate`` has no row at all: at random, independent of everything else.

Behaviours
----------
A user visits ``categories_per_user`` categories, and the user's lists come from these. A behaviour has category ``c``
with a probability proportional to ``exp(liking_strength * liking[user, c])``; one of 8 ads of that category is drawn
with probabilities proportional to ``exp(liking_strength * brand_liking)``, and its category and brand are written.
95 % are ``pv``. Their number per user is geometric; they lie anywhere in 22 days, of which the last 8 are those of the
lists: many are later than the impressions. A share ``click_caused_rate`` of all follows a click, 1 to 60 seconds
later, with the category and the brand of the clicked ad: behaviours during a list leak its labels.

The log
-------
A list is shown within 300 seconds, and lists of one user lie more than 300 seconds apart: the 5-minute session of the
public rule is one shown list. Half of the impressions after the first have the same second as the one before; their
order in the file is the display order. Lists without a click stay in the log, and so do single impressions (a share
``single_rate`` of the lists) and users with one list only, of one or two ads (a share ``short_user_rate``): the
protocols drop them, which is a selection. With the defaults a tenth of the impressions is clicked, and about 45 % of
the lists are kept.

All values are invented: nothing is fitted to the real log.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from hf_rerank.data.simulation.click_process import check_parameters, examination_curve
from hf_rerank.errors import InputError

# The largest ids of the real files.
LARGEST_USER, LARGEST_AD = 1_141_729, 846_811
LARGEST_CATEGORY, LARGEST_CAMPAIGN, LARGEST_CUSTOMER, LARGEST_BRAND = 12_977, 423_436, 255_875, 461_528
# A list is shown within this time, in seconds.
SESSION_SECONDS = 300


@dataclass(frozen=True)
class AdWorld:
    """The parameters of the simulated world of Ad.

    Clicks are drawn with probability ``examination[position] * attraction``; attraction is the sigmoid of the terms
    that the parameters below weight. The docstring of ``hf_rerank.data.simulation.ad_world`` has the formulas.

    Args:
        n_ads, n_categories, n_campaigns, n_customers, n_brands: number of each, at most as many as in the real files.
        categories_per_user: categories that a user visits, at most ``n_categories``.
        categories_per_list: categories of a list, at most ``categories_per_user``.
        pool_size: number of ads from which a list is retrieved, the same number of each of its categories (the
            remainder is left out): at least ``longest_list``, and not more of a category than it has.
        shortest_list, longest_list: lengths of a list, in [2, 100]; all in between are equally frequent.
        lists_per_user: mean number of lists per user, in [1, 200].
        single_rate: share of the lists with one impression, in [0, 1].
        short_user_rate: share of the users who saw only one list, of one or two ads, in [0, 0.5].
        no_profile_rate: share of the users without a row in ``user_profile.csv``, in [0, 1].
        missing_level_rate: share of the users without ``pvalue_level``, or ``new_user_class_level``, in [0, 1].
        brandless_rate: share of the ads without a brand, in [0, 1].
        behaviours_per_user: mean number of behaviours per user, unless ``simulate_ad`` is given the total.
        click_caused_rate: share of the behaviours that follow a click, in [0, 1].
        bias: level of the attraction, in logits.
        propensity_sd: standard deviation of the propensity, in logits, half of its variance from the user and half
            from the list.
        quality_weight, match_weight: weights of the terms of the ad itself.
        context_strength: factor on all three context terms; with 0 pointwise models are correct.
        theme_weight, price_weight, crowding_weight: weights of the context terms.
        theme_sd: standard deviation, over lists, of the pull of the theme on the mean style (styles have 1).
        price_spread: the unit of price gaps, in logarithms of the price.
        personal_taste: share of the match that only the behaviours reveal, in [0, 1].
        liking_strength: how strongly the behaviours depend on the likings; 0: not at all.
        initial_noise: standard deviation of the noise of the initial ranker, which sorts by quality + match + noise.
        display_noise: the same for the ranker that made the display order.
        looks_at_first_only, looks_at_all: shares of the readers; the remaining readers go down the list.
        patience: mean number of positions that the readers who go down the list examine; they examine position ``p``
            (from 0) with probability ``exp(-p / patience)``.
    """

    n_ads: int = 2000
    n_categories: int = 60
    n_campaigns: int = 400
    n_customers: int = 200
    n_brands: int = 150
    categories_per_user: int = 12
    categories_per_list: int = 4
    pool_size: int = 48
    shortest_list: int = 2
    longest_list: int = 14
    lists_per_user: float = 3.0
    single_rate: float = 0.05
    short_user_rate: float = 0.1
    no_profile_rate: float = 0.05
    missing_level_rate: float = 0.3
    brandless_rate: float = 0.2
    behaviours_per_user: float = 30.0
    click_caused_rate: float = 0.02
    bias: float = -0.9
    propensity_sd: float = 0.8
    quality_weight: float = 0.7
    match_weight: float = 1.2
    context_strength: float = 1.0
    theme_weight: float = 4.5
    price_weight: float = 0.8
    crowding_weight: float = 0.8
    theme_sd: float = 0.2
    price_spread: float = 1.0
    personal_taste: float = 0.9
    liking_strength: float = 1.5
    initial_noise: float = 1.2
    display_noise: float = 8.0
    looks_at_first_only: float = 0.3
    looks_at_all: float = 0.2
    patience: float = 6.0

    def __post_init__(self) -> None:
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            whole = parameter.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise InputError(
                    f"AdWorld.{parameter.name} must be {'an integer' if whole else 'a number'}, got {value!r}"
                )
            if not np.isfinite(value):
                raise InputError(f"AdWorld.{parameter.name} must be finite, got {value}")
        shares = ("single_rate", "no_profile_rate", "missing_level_rate", "brandless_rate", "click_caused_rate")
        not_negative = ("behaviours_per_user", "propensity_sd", "theme_sd", "liking_strength", "initial_noise")
        ranges: dict[str, tuple[float, float]] = {
            "n_ads": (1, LARGEST_AD),
            "n_categories": (1, LARGEST_CATEGORY),
            "n_campaigns": (1, LARGEST_CAMPAIGN),
            "n_customers": (1, LARGEST_CUSTOMER),
            "n_brands": (1, LARGEST_BRAND),
            "categories_per_user": (1, self.n_categories),
            "categories_per_list": (1, self.categories_per_user),
            "shortest_list": (2, 100),
            "longest_list": (self.shortest_list, 100),
            "short_user_rate": (0, 0.5),
            "lists_per_user": (1, 200),
            **dict.fromkeys((*shares, "personal_taste"), (0, 1)),
            **dict.fromkeys((*not_negative, "display_noise"), (0, np.inf)),
        }
        check_parameters(self, ranges, above_zero=())
        self._check_pool()

    def _check_pool(self) -> None:
        smallest = self.n_ads // self.n_categories
        if self.pool_per_category > smallest:
            raise InputError(
                f"AdWorld.pool_size {self.pool_size} takes {self.pool_per_category} ads of each of "
                f"{self.categories_per_list} categories, but with {self.n_ads} ads in {self.n_categories} categories "
                f"the smallest has {smallest}: lower pool_size or n_categories, or raise n_ads"
            )
        if self.pool_per_category * self.categories_per_list < self.longest_list:
            raise InputError(
                f"AdWorld.pool_size {self.pool_size} gives {self.pool_per_category} ads of each of "
                f"{self.categories_per_list} categories for a list, fewer than longest_list {self.longest_list}: "
                "raise pool_size"
            )

    @property
    def pool_per_category(self) -> int:
        """Number of ads of one category from which a list is retrieved."""
        return self.pool_size // self.categories_per_list

    @property
    def examination(self) -> np.ndarray:
        """Probability that each position is examined, [longest_list]; 1 at the first position."""
        return examination_curve(self, self.longest_list)
