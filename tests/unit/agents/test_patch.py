"""RFC 6902, with the cases of its appendix A."""

from typing import Any

import pytest

from gateway.agents.patch import PatchError, apply_patch

GOOD: list[tuple[str, Any, list[dict[str, Any]], Any]] = [
    ("A.1", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}],
     {"baz": "qux", "foo": "bar"}),
    ("A.2", {"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}],
     {"foo": ["bar", "qux", "baz"]}),
    ("A.3", {"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ("A.4", {"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}],
     {"foo": ["bar", "baz"]}),
    ("A.5", {"baz": "qux", "foo": "bar"}, [{"op": "replace", "path": "/baz", "value": "boo"}],
     {"baz": "boo", "foo": "bar"}),
    ("A.6", {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
     [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
     {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}),
    ("A.7", {"foo": ["all", "grass", "cows", "eat"]},
     [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
     {"foo": ["all", "cows", "eat", "grass"]}),
    ("A.8", {"baz": "qux", "foo": ["a", 2, "c"]},
     [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
     {"baz": "qux", "foo": ["a", 2, "c"]}),
    ("A.10", {"foo": "bar"}, [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
     {"foo": "bar", "child": {"grandchild": {}}}),
    ("A.11", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}],
     {"foo": "bar", "baz": "qux"}),
    ("A.14", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ("A.16", {"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
     {"foo": ["bar", ["abc", "def"]]}),
    ("copy", {"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"},
                          {"op": "add", "path": "/b/-", "value": 2}], {"a": [1], "b": [1, 2]}),
    ("whole", {"a": 1}, [{"op": "replace", "path": "", "value": [1]}], [1]),
    ("add replaces", {"a": 1}, [{"op": "add", "path": "/a", "value": 2}], {"a": 2}),
    ("add to nothing", None, [{"op": "add", "path": "", "value": {}}], {}),
    ("end of array", [1], [{"op": "add", "path": "/1", "value": 2}], [1, 2]),
    ("move to itself", {"a": 1}, [{"op": "move", "from": "/a", "path": "/a"}], {"a": 1}),
    ("numbers", {"a": 1}, [{"op": "test", "path": "/a", "value": 1.0}], {"a": 1}),
]  # fmt: skip

BAD: list[tuple[str, Any, list[dict[str, Any]]]] = [
    ("A.9", {"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}]),
    ("A.12", {"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": "qux"}]),
    ("A.15", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}]),
    ("unknown op", {}, [{"op": "merge", "path": "/a"}]),
    ("no op", {}, [{"path": "/a"}]),
    ("no path", {}, [{"op": "remove"}]),
    ("no pointer", {"a": 1}, [{"op": "remove", "path": "a"}]),
    ("no value", {}, [{"op": "add", "path": "/a"}]),
    ("absent", {}, [{"op": "replace", "path": "/a", "value": 1}]),
    ("leading zero", [1, 2], [{"op": "remove", "path": "/01"}]),
    ("negative", [1, 2], [{"op": "remove", "path": "/-1"}]),
    ("past the end", [1], [{"op": "add", "path": "/2", "value": 1}]),
    ("end is nothing", [1], [{"op": "remove", "path": "/-"}]),
    ("into itself", {"a": {}}, [{"op": "move", "from": "/a", "path": "/a/b"}]),
    ("into a number", {"a": 1}, [{"op": "add", "path": "/a/b", "value": 1}]),
    ("true is not 1", {"a": [True]}, [{"op": "test", "path": "/a", "value": [1]}]),
    ("second fails", {"a": 1}, [{"op": "remove", "path": "/a"}, {"op": "remove", "path": "/a"}]),
]


@pytest.mark.parametrize(
    ("value", "patch", "expected"), [c[1:] for c in GOOD], ids=[c[0] for c in GOOD]
)
def test_applies(value: Any, patch: list[dict[str, Any]], expected: Any) -> None:
    assert apply_patch(value, patch) == expected


@pytest.mark.parametrize(("value", "patch"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_refuses_and_changes_nothing(value: Any, patch: list[dict[str, Any]]) -> None:
    before = repr(value)
    with pytest.raises(PatchError):
        apply_patch(value, patch)
    assert repr(value) == before
