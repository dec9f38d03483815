"""The schema: errors are reported on creation; JSON round trips; its fingerprint."""

from __future__ import annotations

import pytest

from hf_rerank.errors import InputError
from hf_rerank.schema import Categorical, Dense, ListSchema, Vector

ITEM = Categorical("item_id")
WRONG_SCHEMAS = {
    "no items": (lambda: ListSchema(items=[]), "no item features"),
    "a bare feature": (lambda: ListSchema(items=ITEM), "expected a list of features"),
    "a name for a feature": (
        lambda: ListSchema(items=["item_id"]),
        "'item_id' is not a feature: expected Categorical",
    ),
    "duplicate column": (
        lambda: ListSchema(items=[ITEM], user=[Dense("item_id")]),
        "names the column 'item_id' twice",
    ),
    "label as feature": (lambda: ListSchema(items=[ITEM, Dense("click")]), "'click' is both a feature and the label"),
    "vector of the user": (lambda: ListSchema(items=[ITEM], user=[Vector("v", dim=2)]), "'v' is a Vector in user"),
    "vector of the history": (
        lambda: ListSchema(items=[ITEM], history=[Vector("v", 2)]),
        "'v' is a Vector in history",
    ),
    "shares an unknown table": (
        lambda: ListSchema(items=[ITEM], history=[Categorical("seen", shares="itemid")]),
        r"shares the table of 'itemid'.*did you mean 'item_id'",
    ),
    "shares a number": (
        lambda: ListSchema(items=[Dense("price")], history=[Categorical("seen", shares="price")]),
        "not a categorical item feature",
    ),
    "an item feature shares": (
        lambda: ListSchema(items=[ITEM, Categorical("seen", shares="item_id")]),
        "only history features can",
    ),
    "list length": (lambda: ListSchema(items=[ITEM], max_list_length=0), "max_list_length=0: expected at least 1"),
    "history length": (lambda: ListSchema(items=[ITEM], max_history_length=0), "max_history_length=0"),
    "size": (lambda: Categorical("x", size=2), "size=2: expected at least 3"),
    "huge table": (lambda: Categorical("x", hash_size=2**31), "hash_size=2147483648: expected at most 2,147,483,647"),
    "hash size": (lambda: Categorical("x", hash_size=1), "hash_size=1: expected at least 3"),
    "two sizes": (lambda: Categorical("x", size=9, hash_size=9), "size and hash_size"),
    "hashed and shared": (lambda: Categorical("x", hash_size=9, shares="y"), "hash_size and shares"),
    "min_count": (lambda: Categorical("x", min_count=0), "min_count=0: expected at least 1"),
    "scale": (lambda: Dense("x", scale="lgo"), "scale='lgo'.*did you mean 'log'"),  # type: ignore[arg-type]
    "missing": (lambda: Dense("x", missing="drop"), "missing='drop': expected one of mean, indicator, error"),  # type: ignore[arg-type]
    "dim": (lambda: Vector("x", dim=0), "dim=0: expected at least 1"),
    "fractional dim": (lambda: Vector("x", dim=1.5), "dim=1.5: expected a whole number"),  # type: ignore[arg-type]
    "size as text": (lambda: Categorical("x", size="9"), "size='9': expected a whole number"),  # type: ignore[arg-type]
    "fractional list length": (
        lambda: ListSchema(items=[ITEM], max_list_length=9.5),
        "max_list_length=9.5: expected a whole",
    ),  # type: ignore[arg-type]
    "no label": (lambda: ListSchema(items=[ITEM], label=None), "names no label"),  # type: ignore[arg-type]
    "a number as name": (lambda: ListSchema(items=[Dense(5)]), "names the column 5: expected a non-empty string"),  # type: ignore[arg-type]
    "an empty name": (lambda: ListSchema(items=[ITEM], group=""), "names the column '': expected a non-empty string"),
    "one column, two meanings": (
        lambda: ListSchema(items=[ITEM], position="click"),
        "'click' as position and as label",
    ),
    "grouped by clicks": (lambda: ListSchema(items=[ITEM], group="click"), "'click' as label and as group"),
    "feature as initial score": (
        lambda: ListSchema(items=[ITEM, Dense("earlier")], initial_score="earlier"),
        "'earlier' is both a feature and the initial_score: name another column",
    ),
    "weights as initial score": (
        lambda: ListSchema(items=[ITEM], initial_score="w", weight="w"),
        "'w' as initial_score and as weight: each needs its own column",
    ),
    "empty initial score name": (lambda: ListSchema(items=[ITEM], initial_score=""), "names the column '': expected"),
    "list id as item id": (
        lambda: ListSchema(items=[ITEM], list_id="list_id", id="list_id"),
        "id of the schema is 'list_id', which is not an item column",
    ),
    "group as item id": (
        lambda: ListSchema(items=[ITEM], group="user", id="user"),
        "'user', which is not an item",
    ),
    "user feature as item id": (
        lambda: ListSchema(items=[ITEM], user=[Categorical("city")], id="city"),
        "id of the schema is 'city', which is not an item column",
    ),
    "empty id name": (
        lambda: ListSchema(items=[ITEM], id=""),
        "names the column '': expected a non-empty string",
    ),
    "examination above 1": (lambda: ListSchema(items=[ITEM], examination=[1, 1.5]), "examination .* holds 1.5"),
    "examination as text": (lambda: ListSchema(items=[ITEM], examination=["1"]), "examination .* holds '1'"),  # type: ignore[list-item]
}


@pytest.mark.parametrize(("make", "message"), WRONG_SCHEMAS.values(), ids=WRONG_SCHEMAS.keys())
def test_wrong_schemas_are_rejected(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_the_id_may_be_a_feature_or_a_separate_column() -> None:
    assert ListSchema(items=[ITEM, Categorical("sku")]).id_column == "item_id"
    assert ListSchema(items=[ITEM, Categorical("sku")], id="sku").id_column == "sku"
    assert ListSchema(items=[ITEM], id="sku").id_column == "sku"


def test_grouping_by_a_feature_warns() -> None:
    with pytest.warns(UserWarning, match="'user' is the column to split by and also a feature"):
        ListSchema(items=[ITEM], user=[Categorical("user")], group="user")


FULL = ListSchema(
    items=[Categorical("item_id"), Dense("price"), Dense("stars", missing="error"), Vector("text", dim=2)],
    user=[Categorical("gender"), Dense("age")],
    history=[Categorical("seen", shares="item_id"), Dense("minutes")],
    label="click",
    position="place",
    initial_score="earlier",
    weight="weight",
    propensity="looked",
    id="sku",
    list_id="list_id",
    group="user_id",
    max_list_length=7,
    attraction="truth",
    examination=[1.0, 0.5],
    fitted="abc",
)


def test_schema_is_saved_and_loaded_as_json(tmp_path) -> None:
    FULL.save(tmp_path / "schema.json")
    assert ListSchema.load(tmp_path / "schema.json") == FULL
    assert FULL.to_dict()["items"][0] == {
        "kind": "categorical",
        "name": "item_id",
        "size": None,
        "hash_size": None,
        "shares": None,
        "min_count": 2,
    }
    text = (tmp_path / "schema.json").read_bytes()
    (tmp_path / "schema.json").write_bytes(b"\xef\xbb\xbf" + text)  # as saved by Windows editors
    assert ListSchema.load(tmp_path / "schema.json") == FULL
    assert ListSchema.from_dict({"items": [{"kind": "vector", "name": "v", "dim": 3}]}) == ListSchema(
        items=[Vector("v", 3)]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"items": [', "not valid JSON"),
        ("[]", "holds a list: expected a JSON object"),
        ('{"items": [], "lable": "click"}', "unknown key 'lable'; did you mean 'label'"),
        ('{"items": [{"kind": "categorial", "name": "x"}]}', "kind 'categorial'.*did you mean 'categorical'"),
        ('{"items": [{"name": "x"}]}', "kind 'None': expected one of categorical, dense, vector"),
        (
            '{"items": [{"kind": "dense", "name": "x", "scael": "log"}]}',
            "'x' has an unknown key 'scael'; did you mean",
        ),
        ('{"items": [{"kind": "vector", "name": "x"}]}', "vector feature 'x' of items lacks a field.*dim"),
        ('{"items": [{"kind": "categorical", "name": "x", "size": "5"}]}', "'x' has size='5': expected a whole"),
        ('{"items": ["x"]}', "a feature of items is 'x': expected an object"),
        ('{"items": null}', "items of the schema is None: expected a list"),
        (
            '{"items": [{"kind": "dense", "name": "x"}], "max_list_length": "9"}',
            "max_list_length='9': expected a whole",
        ),
        (
            '{"items": [{"kind": "dense", "name": "x"}], "label": "a", "label": "b"}',
            "names 'label' twice in one object",
        ),
        ('{"items": [{"kind": "dense", "name": "x", "name": "y"}]}', "names 'name' twice in one object"),
    ],
)
def test_wrong_schema_files_are_rejected(tmp_path, text: str, message: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(InputError, match=message):
        ListSchema.load(tmp_path / "schema.json")
    with pytest.raises(InputError, match=r"no schema at .*none\.json"):
        ListSchema.load(tmp_path / "none.json")


def test_fingerprint_changes_only_with_the_meaning_of_the_tensors() -> None:
    """Changes that leave the meaning of the tensors leave the fingerprint."""
    same = [
        {"max_list_length": 99},
        {"max_history_length": 99},
        {"label": "like"},
        {"position": None},
        {"initial_score": None},
        {"weight": None},
        {"propensity": None},
        {"id": None},
        {"list_id": None},
        {"group": None},
        {"examination": None},
    ]
    other = [
        {"fitted": "abd"},
        {"items": FULL.items[:-1]},
        {"items": (*FULL.items[:-1], Vector("text", dim=3))},
        {"items": (FULL.items[0], FULL.items[2], FULL.items[1], FULL.items[3])},
        {"user": ()},
        {"history": ()},
    ]
    assert len(FULL.fingerprint) == 16
    assert {FULL.replace(**changes).fingerprint for changes in same} == {FULL.fingerprint}
    assert len({FULL.fingerprint, *(FULL.replace(**changes).fingerprint for changes in other)}) == 1 + len(other)
