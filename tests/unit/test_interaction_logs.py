import gzip
import logging
from pathlib import Path

import polars as pl
import pytest

from shared.adapters.interaction_logs import COLUMNS, load_log, read_log
from shared.core.errors import LogUnreadable

Row = tuple[str | None, str, str, int, str]


def rows(log: pl.DataFrame) -> list[Row]:
    assert tuple(log.columns) == COLUMNS
    assert log.dtypes == [pl.String, pl.String, pl.String, pl.Int64, pl.String]
    return log.rows()


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


DAY = 1_462_752_000_000  # 2016-05-09T00:00:00Z
KNOWN = {
    "driftwood": (
        "log.csv",
        "session_id,user_id,item_id,timestamp_ms,event_type\ns1,u1,a,1700000000001,view\ns1,u1,b,1700000000000,cart\n",
        [("s1", "u1", "b", 1_700_000_000_000, "cart"), ("s1", "u1", "a", 1_700_000_000_001, "view")],
    ),
    "driftwood-topic": (
        "log.tsv",
        "user_id\titem_id\tts\nu1\ta\t1700000000000\n",
        [(None, "u1", "a", 1_700_000_000_000, "view")],
    ),
    "retailrocket": (
        "events.csv",
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
        "1433224214164,992329,transaction,248676,7\n",
        [
            (None, "257597", "355908", 1_433_221_332_117, "view"),
            (None, "992329", "248676", 1_433_224_214_164, "transaction"),
        ],
    ),
    "yoochoose": (
        "yoochoose-clicks.dat",
        "1,2014-04-07T10:51:09.277Z,214536502,0\n2,2014-04-07T10:51:09Z,214536500,S\n",
        [("2", "2", "214536500", 1_396_867_869_000, "click"), ("1", "1", "214536502", 1_396_867_869_277, "click")],
    ),
    "yoochoose-buys": (
        "yoochoose-buys.dat",
        "420374,2014-04-06T18:44:58.314Z,214537888,12462,1\n",
        [("420374", "420374", "214537888", 1_396_809_898_314, "buy")],
    ),
    "diginetica": (
        "train-item-views.csv",
        "sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;526309;2016-05-09\n1;NA;31331;1000;2016-05-09\n",
        [("1", "1", "31331", DAY + 1000, "view"), ("1", "1", "81766", DAY + 526_309, "view")],
    ),
    "diginetica-2016": (
        "train-item-views.csv",
        "session_id;user_id;item_id;timeframe;eventdate\n1;5;81766;0;2016-05-09\n",
        [("1", "5", "81766", DAY, "view")],
    ),
    "movielens": (
        "ratings.csv",
        "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n",
        [(None, "1", "2", 1_112_486_027_000, "rating")],
    ),
    "movielens-dat": ("ratings.dat", "1::1193::5::978300760\n", [(None, "1", "1193", 978_300_760_000, "rating")]),
    "movielens-100k": ("u.data", "196\t242\t3\t881250949\n", [(None, "196", "242", 881_250_949_000, "rating")]),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("named", [False, True], ids=["told-by-columns", "named"])
def test_known_layouts(tmp_path: Path, name: str, named: bool) -> None:
    file, content, expected = KNOWN[name]
    found = load_log(write(tmp_path, file, content), name if named else None)
    assert found.format == name
    assert rows(found.events) == expected
    assert not found.rejected


@pytest.mark.parametrize(("family", "name"), [("movielens", "movielens-100k"), ("diginetica", "diginetica-2016")])
def test_a_family_name_finds_the_layout(tmp_path: Path, family: str, name: str) -> None:
    file, content, expected = KNOWN[name]
    assert rows(read_log(write(tmp_path, file, content), family)) == expected


def test_windows_line_ends_byte_order_mark_and_quotes(tmp_path: Path) -> None:
    text = '\ufeffuser_id,item_id,ts\r\n"u, 1","a ""b""",1700000000000\r\n'
    assert rows(read_log(write(tmp_path, "log.csv", text))) == [(None, "u, 1", 'a "b"', 1_700_000_000_000, "view")]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2014-04-07T10:51:09.277Z", 1_396_867_869_277),
        ("2014-04-07 10:51:09", 1_396_867_869_000),
        ("2014-04-07T12:51:09+02:00", 1_396_867_869_000),
        ("1396867869", 1_396_867_869_000),
        ("1396867869277", 1_396_867_869_277),
        ("1396867869277000", 1_396_867_869_277),
    ],
)
def test_own_columns_and_the_unit_of_time(tmp_path: Path, time: str, expected: int) -> None:
    path = write(tmp_path, "log.csv", f"who;what;when\nx;y;{time}\n")
    mapping = {"user_id": "who", "item_id": "what", "ts": "when"}
    assert rows(read_log(path, columns=mapping)) == [(None, "x", "y", expected, "view")]


def test_columns_over_a_known_layout(tmp_path: Path) -> None:
    path = write(tmp_path, "e.csv", "timestamp,visitorid,event,itemid,category\n1433221332117,1,view,2,shoes\n")
    assert rows(read_log(path, columns={"item_id": "category"}))[0][2] == "shoes"


def test_parquet_of_integers_dates_and_gaps(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"session_id": [7, 7, 8], "user_id": [None, 3.0, None], "item_id": [1, 2, 3], "timestamp_ms": [3, 1, 2]}
    )
    frame.write_parquet(tmp_path / "whatever.bin")
    # Where only some users are named, a session's stand-in cannot be taken for one of them.
    assert rows(read_log(tmp_path / "whatever.bin")) == [
        ("7", "3", "2", 1, "view"),
        ("8", "session:8", "3", 2, "view"),
        ("7", "session:7", "1", 3, "view"),
    ]
    dated = frame.select("session_id", "item_id", ts=pl.datetime(2014, 4, 7, 10, 51, 9))
    dated.write_parquet(tmp_path / "dated.parquet")
    assert rows(read_log(tmp_path / "dated.parquet"))[0] == ("7", "7", "1", 1_396_867_869_000, "view")


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    for number, ts in enumerate([2, 1]):
        folder = tmp_path / f"day={number}"
        folder.mkdir()
        frame = pl.DataFrame({"user_id": ["u"], "item_id": [str(number)], "ts": [ts]})
        frame.write_parquet(folder / "part.parquet")
    assert [row[2] for row in rows(read_log(tmp_path))] == ["1", "0"]


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    lines = "".join(f"u,{i},5\n" for i in range(5000))
    log = read_log(write(tmp_path, "log.csv", "user_id,item_id,ts\n" + lines))
    assert log["item_id"].to_list() == [str(i) for i in range(5000)]


def test_bad_rows_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        b"u1,a,1700000000000",
        b",a,1700000000000",
        b"u1,,1700000000000",
        b"u1,a,soon",
        b"u1,a,-5",
        b"u1,a",
        b"u1," + b"x" * 257 + b",1700000000000",
        b"u1,\xff\xfe,1700000000000",
        b"u1,b,1700000000000,too,many",
    ]
    path = write(tmp_path, "log.csv", b"user_id,item_id,ts\n" + b"\n".join(lines) + b"\n")
    found = load_log(path)
    assert [row[2] for row in rows(found.events)] == ["a", "b"]
    assert found.rejected == {
        "a timestamp that cannot be read": 3,
        "item_id over 256 bytes": 1,
        "item_id that is not UTF-8": 1,
        "neither user_id nor session_id": 1,
        "no item_id": 1,
    }
    assert found.rows == 9
    with caplog.at_level(logging.WARNING):
        read_log(path)
    assert "2 events of 9 rows; left out: 3 with a timestamp that cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty file"),
        (b"\x00\x01\x02", "neither text nor Parquet"),
        (b"PAR1 and then nothing of the kind", "log.csv: "),
        ("a,b\n1,2\n", "which column is item_id"),
        ("item_id,ts\n1,2\n", "which column is user_id or session_id"),
        ("user_id,item_id,ts\n", "no events"),
        ("user_id,item_id,ts\nu,i,never\n", "no usable row in 1"),
    ],
)
def test_unreadable(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, "log.csv", content)
    with pytest.raises(LogUnreadable, match=message) as caught:
        read_log(path)
    assert str(path) in str(caught.value)


def test_what_the_caller_got_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", "user_id,item_id,ts\nu,i,5\n")
    with pytest.raises(LogUnreadable, match=r"no column 'nope' .for user_id.; columns: user_id, item_id, ts"):
        read_log(path, columns={"user_id": "nope"})
    with pytest.raises(LogUnreadable, match="no such column of ours: time"):
        read_log(path, columns={"time": "ts"})
    with pytest.raises(LogUnreadable, match="unknown format 'netflix'"):
        read_log(path, "netflix")
    with pytest.raises(LogUnreadable, match="no such file"):
        read_log(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["driftwood", "yoochoose", "movielens-dat"])
def test_a_gzipped_text_is_read_as_its_content(tmp_path: Path, name: str) -> None:
    file, content, expected = KNOWN[name]
    found = load_log(write(tmp_path, f"{file}.gz", gzip.compress(content.encode())))
    assert found.format == name
    assert rows(found.events) == expected


def test_a_gzipped_text_that_is_cut_short_is_named(tmp_path: Path) -> None:
    content = "user_id,item_id,ts\n" + "".join(f"u{i},i{i * 7919 % 1000},17000000{i:05}\n" for i in range(20_000))
    cut = write(tmp_path, "log.csv.gz", gzip.compress(content.encode())[:-9000])
    with pytest.raises(LogUnreadable, match=r"log\.csv\.gz"):
        load_log(cut)
