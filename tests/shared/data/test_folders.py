"""A folder as people have it: what is read, what is left out, and what is said of odd cells."""

import gc
import gzip
import json
import logging
import warnings

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from small_config import small_config
from small_models import encoder

from shared.base.errors import ConfigError, DataError
from shared.config.schema import Config
from shared.data.columns import Columns
from shared.data.documents import UNLABELLED, Documents, space_fairly
from shared.data.examples import Examples, cut_blocks, examples_with_labels
from shared.data.hold_out import hold_out
from shared.data.resolve import documents_of
from shared.models.load import load_model
from shared.models.tokenizers import ByteTokenizer
from shared.training.corpus import Corpus
from shared.training.start import load_start

BYTES = ByteTokenizer()
pytestmark = [  # the reader of datasets leaves CSV files open
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def no_open_files():
    """What readers that failed leave open is closed with their errors, and warns of it then."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def csv(tmp_path):
    """Write a folder with one CSV file, and return its path."""

    def write(*lines, head="text,label", name="data.csv"):
        folder = tmp_path / "table"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join([head, *lines]) + "\n")
        return str(folder)

    return write


def alternating(count):
    """Rows of two classes in turn."""
    return [f"text number {row},{row % 2}" for row in range(count)]


def labels_in_turn(count, classes=2, groups=1):
    rows = np.arange(count)
    group = rows * groups // count
    names = tuple(f"g{n}" for n in range(groups))
    return Examples(rows[:, None].astype(np.int32), group, names, rows % classes)


# --- which files are read


@pytest.mark.parametrize("beside", [["README.txt"], ["README.txt", "LICENSE.txt", "x/NOTES.TXT"]])
def test_a_table_is_read_whatever_texts_lie_beside_it(csv, beside, caplog, tmp_path):
    name = csv("good film,1", "bad film,0")
    for file in beside:
        (tmp_path / "table" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "table" / file).write_text("what this is\nmore\n")
    with caplog.at_level(logging.WARNING, "dandelion"):
        assert list(documents_of(name).texts) == ["good film", "bad film"]
    assert f"1 files are read (csv), {len(beside)} are not: " in caplog.text
    assert beside[0] in caplog.text


def test_tables_of_two_kinds_are_refused(csv, tmp_path):
    name = csv("a,1")
    (tmp_path / "table" / "more.json").write_text('{"text": "b"}')
    with pytest.raises(DataError, match="tables of one kind expected, got 1 csv, 1 json"):
        documents_of(name)


def test_files_of_other_splits_are_named_as_left_out(csv, caplog):
    csv("t,1", name="test.csv")
    name = csv("a,1", "b,0", name="train.csv")
    with caplog.at_level(logging.WARNING, "dandelion"):
        assert len(documents_of(name).texts) == 2
    assert "1 are not: test.csv" in caplog.text


def test_files_that_are_all_for_tests_by_their_names_are_refused(csv):
    with pytest.raises(DataError, match=r"a split 'train' expected, got test.*test\.csv"):
        documents_of(csv("a,1", name="test.csv"))


def test_several_files_in_folders_and_compressed_are_one_table(csv, tmp_path):
    csv("a,1", name="north/one.csv")
    name = csv("b,0", name="south/two.csv")
    (tmp_path / "table" / "zip.csv.gz").write_bytes(gzip.compress(b"text,label\nc,1\n"))
    assert sorted(documents_of(name).texts) == ["a", "b", "c"]


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    folder = tmp_path / "ward [1] *"
    folder.mkdir()
    (folder / "data.tsv").write_text("text\tlabel\nsome words, and a comma\t1\n")
    assert list(documents_of(str(folder)).texts) == ["some words, and a comma"]


def test_texts_in_folders_are_grouped_by_these(tmp_path):
    for hospital in ("h0", "h1"):
        for number in range(2):
            (tmp_path / hospital).mkdir(exist_ok=True)
            (tmp_path / hospital / f"{number}.txt").write_text(f"{hospital} {number}")
    assert documents_of(str(tmp_path)).groups == ["h0", "h0", "h1", "h1"]


def test_texts_of_one_folder_are_grouped_by_their_names(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.TXT").write_text("A")
    (tmp_path / "texts" / "b.txt.gz").write_bytes(gzip.compress(b"line\nline"))
    documents = documents_of(str(tmp_path))
    assert documents.groups == ["a", "b"]
    assert documents.texts == ["A", "line\nline"]


# --- why a file cannot be read


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bad.csv", b"text,label\na,1\nx,1,extra\n", r"bad\.csv cannot be read: .*line 3, saw 3"),
        ("latin.csv", b"text,label\ncaf\xe9,1\n", r"latin\.csv cannot be read: .*byte 0xe9"),
        ("empty.csv", b"", r"empty\.csv cannot be read: rows expected, got none"),
        ("cut.json", b'{"text": "a"}\n{"text": "b', r"cut\.json cannot be read: .+"),
        ("cut.parquet", b"PAR1", r"cut\.parquet cannot be read: .+"),
        (
            "cut.csv.gz",
            gzip.compress(b"text\n" * 99, mtime=0)[:20],
            r"cut\.csv\.gz cannot be read: .+",
        ),
    ],
)
def test_the_cause_and_the_file_are_named(tmp_path, name, content, reason):
    (tmp_path / "good.txt").write_text("beside")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        documents_of(str(tmp_path))
    assert "An error occurred while generating" not in str(caught.value)


def test_of_several_files_the_broken_one_is_named(csv):
    csv("a,1", name="a.csv")
    csv("b,0", name="c.csv")
    with pytest.raises(DataError, match=r"b\.csv cannot be read: .*saw 3"):
        documents_of(csv("x,1", "x,1,extra", name="b.csv"))


# --- cells


@pytest.mark.parametrize("cell", ["", "NA"])
def test_rows_without_a_text_are_left_out_and_counted(csv, cell, caplog):
    with caplog.at_level(logging.WARNING, "dandelion"):
        documents = documents_of(csv("one,0", f"{cell},1", "two,1"))
    assert list(documents.texts) == ["one", "two"]
    assert documents.labels == [0, 1]
    assert "1 of 3 rows have no text in text and are left out, the first is row 2" in caplog.text


def test_a_row_without_a_text_changes_the_revision(csv):
    whole = documents_of(csv("one,0", ",1", "two,1")).revision
    assert whole != documents_of(csv("one,0", "two,1")).revision


def test_an_empty_cell_is_no_word_none(tmp_path):
    rows = [{"question": "Is it?", "long_answer": None, "final_decision": "yes"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows * 2)))
    assert list(documents_of(str(tmp_path)).texts) == ["Is it?\nyes"] * 2


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"text": ["a", "b"], "label": [0, 1]}, "List"),
        ([{"text": 1}, {"text": 2}], "int64"),
        ([{"text": {"de": "a"}}], "de"),
    ],
)
def test_a_column_that_holds_no_texts_is_named_with_its_type(tmp_path, content, kind):
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"texts expected in column 'text', got .*{kind}"):
        documents_of(str(tmp_path))


@pytest.mark.parametrize("label", ["[1, 2]", "0.5", "-3"])
def test_odd_classes_are_refused_by_the_task_that_needs_them(tmp_path, label):
    rows = [f'{{"text": "a", "label": {label}}}', f'{{"text": "b", "label": {label}}}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    documents = documents_of(str(tmp_path))
    assert list(documents.texts) == ["a", "b"]  # language modelling needs none
    with pytest.raises(DataError, match=r"got none: column 'label' of .* holds"):
        examples_with_labels(documents, 2, BYTES.encode)


@pytest.mark.parametrize("column", ["labels", "Label", "sentiment"])
def test_without_a_column_of_classes_the_columns_are_named(csv, column):
    name = csv("a,1", "b,0", head=f"text,{column}")
    with pytest.raises(DataError, match=f"has columns text, {column}; set label-column"):
        examples_with_labels(documents_of(name), 2, BYTES.encode)
    assert documents_of(name, columns=Columns(label=column)).labels == [1, 0]


def test_columns_of_other_names_are_given(csv):
    name = csv("p1,cough,yes", "p2,none,no", head="patient_id,note,outcome")
    documents = documents_of(name, by="patient_id", columns=Columns("note", "outcome"))
    assert list(documents.texts) == ["cough", "none"]
    assert documents.groups == ["p1", "p2"]
    assert documents.classes == ("no", "yes")
    joined = documents_of(name, columns=Columns("patient_id, note"))
    assert list(joined.texts) == ["p1\ncough", "p2\nnone"]
    with pytest.raises(DataError, match="set text-column"):
        documents_of(name)
    for columns, key in ((Columns("nots"), "text"), (Columns("note", "outcom"), "label")):
        with pytest.raises(ConfigError, match=f"{key}-column: .* has columns patient_id, note"):
            documents_of(name, columns=columns)
    with pytest.raises(ConfigError, match=r"partition-by: .* has columns patient_id, note"):
        documents_of(name, by="ward", columns=Columns("note"))


# --- classes


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "2"], [1, 2]),
        (["1", "-1"], [1, UNLABELLED]),
        (["0", "", "1"], [0, UNLABELLED, 1]),  # comes as floats
        (["False", "True"], [0, 1]),
        (["True", "True"], [1, 1]),
    ],
)
def test_numbers_are_classes_as_they_stand(csv, cells, labels):
    assert documents_of(csv(*(f"text,{cell}" for cell in cells))).labels == labels


def test_unlabelled_rows_of_named_classes_keep_the_others_numbers(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    data = {"text": ["a", "b", "c"], "label": [-1, 1, 0]}
    Dataset.from_dict(data, features).save_to_disk(tmp_path / "saved")
    documents = documents_of(str(tmp_path / "saved"))
    assert documents.labels == [UNLABELLED, 1, 0]
    assert documents.classes == ("bad", "good")
    assert documents_of(str(tmp_path / "saved"), by="label").groups == ["no class", "good", "bad"]


def test_documents_without_a_class_or_a_token_are_left_out_and_counted(csv, caplog):
    with caplog.at_level(logging.WARNING, "dandelion"):
        documents = documents_of(csv("one,0", "two,", "three,1"))
        examples = examples_with_labels(documents, 2, BYTES.encode)
    assert len(examples) == 2
    assert examples.labels.tolist() == [0, 1]
    assert "column 'label' has no class in 1 of 3 rows, the first is row 2" in caplog.text
    empty = Documents(["", "a"], ["g", "g"], [0, 1])
    assert examples_with_labels(empty, 2, BYTES.encode).labels.tolist() == [1]
    with pytest.raises(DataError, match="1 of which none has a token"):
        examples_with_labels(Documents([""], ["g"], [0]), 2, BYTES.encode)


def test_a_flag_of_held_out_rows_is_true_or_false(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "held_out": "no"}\n' * 2)
    with pytest.raises(DataError, match="true or false expected in column 'held_out', got 'no'"):
        documents_of(str(tmp_path))


# --- what is held out


@pytest.mark.parametrize("count", [40, 256, 512, 1000, 2560, 10_000])
def test_the_fraction_of_a_table_is_held_out_and_every_class_is_on_both_sides(csv, count):
    chosen = Config(
        dataset=csv(*alternating(count)), task="classification", label_words="bad,good",
        num_clients=2, model="byte-gpt", prompt="{text} ", block_size=40,
    )  # fmt: skip
    corpus = Corpus.of(chosen, load_model("byte-gpt", 1))
    held_out = count - len(corpus.training)
    assert 0.05 * count <= held_out <= 0.2 * count
    assert len(corpus.held_out) == min(held_out, 128)
    for examples in (corpus.training, corpus.held_out, corpus.shard(0, 2), corpus.shard(1, 2)):
        share = examples.labels.mean()
        assert 0.3 < share < 0.7


@pytest.mark.parametrize(("groups", "classes"), [(1, 2), (50, 2), (100, 4), (200, 3)])
def test_a_share_of_small_groups_is_the_fraction(groups, classes):
    examples = labels_in_turn(200, classes, groups)
    training, held_out = hold_out(examples, 0.1)
    assert 10 <= len(held_out) <= 40
    assert set(training.labels) == set(held_out.labels) == set(range(classes))
    rows = np.sort(np.concatenate([training.tokens, held_out.tokens])[:, 0])
    assert rows.tolist() == [*range(200)]


def test_the_only_example_of_a_class_stays_for_training():
    labels = np.array([0] * 9 + [1])
    examples = Examples(np.zeros((10, 1), np.int32), np.arange(10), tuple("abcdefghij"), labels)
    training, held_out = hold_out(examples, 0.5)
    assert 1 in training.labels
    assert len(held_out) == 5


def test_one_example_is_not_held_out():
    one = Examples(np.zeros((1, 1), np.int32), np.zeros(1, np.int64), ("g",))
    training, held_out = hold_out(one, 0.9)
    assert (len(training), len(held_out)) == (1, 0)


def test_equal_steps_over_classes_in_turn_miss_none():
    labels = np.arange(600) % 2
    for count in (100, 300):
        rows = space_fairly(labels, 600, count)
        assert len(set(rows.tolist())) == count
        assert np.bincount(labels[rows]).tolist() == [count // 2, count // 2]
    documents = Documents(["t"] * 600, ["g"] * 600, labels.tolist())
    assert set(documents.thin(100).labels) == {0, 1}


def test_rows_that_are_shorter_than_a_block_fill_some_together(csv):
    documents = documents_of(csv(*alternating(200)))
    blocks = cut_blocks(documents, BYTES, 32)
    tokens = sum(len(text) + 1 for text in documents.texts)
    assert len(blocks) * 32 > 0.7 * tokens
    assert len(blocks.names) > 8


def test_natural_groups_are_not_merged_and_the_remedy_is_said(csv):
    name = csv(*(f"t,p{row}" for row in range(40)), head="text,group")
    with pytest.raises(DataError, match=r"none of 40 groups .* set block-size to at most 2"):
        cut_blocks(documents_of(name), BYTES, 32)


def test_many_tokens_that_fill_no_block_are_counted(caplog):
    documents = Documents(["x" * 40, *["y" * 20] * 9], [f"g{n}" for n in range(10)])
    with caplog.at_level(logging.WARNING, "dandelion"):
        assert len(cut_blocks(documents, BYTES, 32)) == 1
    assert "198 of 230 tokens fill no block of 32 and are left out" in caplog.text


def test_another_column_of_the_same_file_has_other_examples(csv, tmp_path):
    """Examples are kept in a cache; they are those of the columns that a run names."""
    rows = [f"good film {k},bad plot {k},{k % 2},{(k + 1) % 2}" for k in range(40)]
    folder = csv(*rows, head="one,two,first,second")
    model = encoder(tmp_path / "bert")
    seen = set()
    for text, label in (("one", "first"), ("two", "first"), ("two", "second")):
        chosen = small_config(
            tmp_path, model=model, dataset=str(folder), max_samples=0, task="classification",
            label_words="no,yes", text_column=text, label_column=label,
        )  # fmt: skip
        training = Corpus.of(chosen, load_start(chosen)).training
        seen.add((training.tokens.tobytes(), training.labels.tobytes()))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", "text\nhome\nM\u00fcller\n".encode("latin-1"), "0xfc in line 3: save it"),
        ("a.csv", "text\nhome\n".encode("utf-16"), "UTF-8 expected, got UTF-16: save it as UTF-8"),
        ("a.txt", "home\n\u00fc".encode("latin-1"), "got byte 0xfc in line 2: save it as UTF-8"),
        ("a.txt", "home".encode("utf-16"), "UTF-8 expected, got UTF-16"),
        ("a.json", b'\xef\xbb\xbf[{"text": "home"}]', "a byte order mark first"),
        ("a.csv", b"", "rows expected, got none"),
        ("a.csv", b"text,label\n", "rows expected, got none"),
        ("a.csv", b"text;label\nhome;0\n", "parted by ';': save the table with commas"),
        ("a.txt", b"", "texts expected, all files are empty"),
    ],
    ids=["latin-1", "utf-16", "latin-1 text", "utf-16 text", "json with a mark", "empty", "no row",
         "semicolons", "empty text"],
)  # fmt: skip
def test_a_file_in_another_form_is_refused_by_what_it_is(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as refused:
        documents_of(str(tmp_path))
    assert said in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_tables_whose_columns_differ_are_named_with_them(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nhome,0\n")
    (tmp_path / "b.csv").write_text("text,outcome\nhome,0\n")
    with pytest.raises(DataError, match=r"label.*outcome"):
        documents_of(str(tmp_path))


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhome")
    (tmp_path / "b.txt").write_text("ward")
    assert documents_of(str(tmp_path)).texts == ["home", "ward"]


def test_empty_text_files_are_left_out_and_counted(tmp_path, caplog):
    for name, text in (("a", "home"), ("b", ""), ("c", "ward")):
        (tmp_path / f"{name}.txt").write_text(text)
    documents = documents_of(str(tmp_path))
    assert (documents.texts, documents.groups) == (["home", "ward"], ["a", "c"])
    assert "1 of 3 text files are empty and are left out: b.txt" in caplog.text


def test_links_are_followed_once_and_broken_ones_are_named(tmp_path, caplog):
    folder, other = tmp_path / "own", tmp_path / "other"
    for each in (folder, other):
        each.mkdir()
    (folder / "a.txt").write_text("home")
    (other / "b.txt").write_text("ward")
    (folder / "linked").symlink_to(other)
    (other / "back").symlink_to(folder)
    assert sorted(documents_of(str(folder)).texts) == ["home", "ward"]
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.txt cannot be read as text: .*No such file"):
        documents_of(str(folder))


@pytest.mark.parametrize("name", ["a b \u00fc", "a\nb", "a [1]*", "A"])
def test_names_of_files_are_taken_as_they_are(tmp_path, name):
    (folder := tmp_path / name).mkdir()
    (folder / f"{name}.csv").write_text("text,label\nhome,1\nward,0\n")
    (folder / ".hidden.csv").write_text("other")
    documents = documents_of(str(folder))
    assert ([*documents.texts], documents.labels) == (["home", "ward"], [1, 0])
