"""GPT-2's tokenizer gives the same ids as other implementations.

Hugging Face `tokenizers` and the package gpt3-tokenizer computed the expected ids from OpenAI's
vocab.bpe and encoder.json. Both packages gave the same ids.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_folder
from gptcli.tokenization import build_tokenizer
from gptcli.tokenization.gpt2 import gpt2_tokenizer, read_ranks

EXPECTED = [
    ("Hello world", [15496, 995]),
    ("", []),
    (" ", [220]),
    (" leading space", [3756, 2272]),
    ("   three leading", [220, 220, 1115, 3756]),
    ("trailing   ", [9535, 4386, 220, 220, 220]),
    (
        "\n\n\ttabs\tand\r\nlines  \n",
        [
            628,
            197,
            8658,
            82,
            197,
            392,
            201,
            198,
            6615,
            220,
            220,
            198,
        ],
    ),
    (
        "I'll say it's what they've said, don't you'd?",
        [
            40,
            1183,
            910,
            340,
            338,
            644,
            484,
            1053,
            531,
            11,
            836,
            470,
            345,
            1549,
            30,
        ],
    ),
    ("DON'T SHOUT", [41173, 6, 51, 6006, 12425]),
    ("🙂", [8582, 25081]),
    (
        "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
        [
            41840,
            102,
            447,
            235,
            41840,
            102,
            447,
            235,
            41840,
            100,
            447,
            235,
            41840,
            99,
            1641,
        ],
    ),
    (
        "def f(x):\n    return x ** 2  # square\n",
        [
            4299,
            277,
            7,
            87,
            2599,
            198,
            220,
            220,
            220,
            1441,
            2124,
            12429,
            362,
            220,
            1303,
            6616,
            198,
        ],
    ),
    (
        '{"key": [1, 2.5e-3, null]}',
        [
            4895,
            2539,
            1298,
            685,
            16,
            11,
            362,
            13,
            20,
            68,
            12,
            18,
            11,
            9242,
            48999,
        ],
    ),
    (
        "3.14159 1,000,000 2024-02-30",
        [
            18,
            13,
            1415,
            19707,
            352,
            11,
            830,
            11,
            830,
            48609,
            12,
            2999,
            12,
            1270,
        ],
    ),
    (
        "Привет, мир!",
        [
            140,
            253,
            21169,
            18849,
            38857,
            16843,
            20375,
            11,
            12466,
            120,
            18849,
            21169,
            0,
        ],
    ),
    ("你好，世界", [19526, 254, 25001, 121, 171, 120, 234, 10310, 244, 45911, 234]),
    ("こんにちは世界", [46036, 22174, 28618, 2515, 94, 31676, 10310, 244, 45911, 234]),
    (
        "안녕하세요 세계",
        [
            168,
            243,
            230,
            167,
            227,
            243,
            47991,
            246,
            168,
            226,
            116,
            168,
            248,
            242,
            23821,
            226,
            116,
            166,
            111,
            226,
        ],
    ),
    (
        "مرحبا بالعالم",
        [
            25405,
            26897,
            148,
            255,
            39848,
            12919,
            17550,
            101,
            23525,
            44690,
            23525,
            25405,
        ],
    ),
    (
        "नमस्ते दुनिया",
        [
            11976,
            101,
            11976,
            106,
            11976,
            116,
            24231,
            235,
            11976,
            97,
            24231,
            229,
            28225,
            99,
            24231,
            223,
            11976,
            101,
            11976,
            123,
            11976,
            107,
            48077,
        ],
    ),
    (
        "naïve café — “quoted” … ½",
        [
            2616,
            38776,
            40304,
            851,
            564,
            250,
            421,
            5191,
            447,
            251,
            3926,
            25208,
        ],
    ),
    ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    ("a<|endoftext|>b", [64, 27, 91, 437, 1659, 5239, 91, 29, 65]),
    ("\xa0nbsp\u3000ideographic", [1849, 77, 24145, 5099, 222, 485, 6826]),
    ("\x00\x1c\x7f control", [188, 216, 221, 1630]),
    (
        "supercalifragilisticexpialidocious",
        [
            16668,
            9948,
            361,
            22562,
            346,
            396,
            501,
            42372,
            498,
            312,
            32346,
        ],
    ),
    ("é combining vs é", [68, 136, 223, 19771, 3691, 38251]),
    ("!!!???...---===", [10185, 28358, 986, 6329, 18604]),
    (
        "https://example.org/a_b?c=d&e=%20",
        [
            5450,
            1378,
            20688,
            13,
            2398,
            14,
            64,
            62,
            65,
            30,
            66,
            28,
            67,
            5,
            68,
            28,
            4,
            1238,
        ],
    ),
    (" the the the the the the the the", [262, 262, 262, 262, 262, 262, 262, 262]),
]


@pytest.mark.parametrize(("text", "ids"), EXPECTED)
def test_ids_equal_those_of_gpt2(text: str, ids: list[int]) -> None:
    tokenizer = build_tokenizer("gpt2", 0, lambda: iter([]))
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode_array(text).tolist() == ids
    assert tokenizer.decode(ids) == text


def test_end_of_text_only_if_it_is_allowed() -> None:
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode("a<|endoftext|> b", allow_eot=True) == [64, 50256, 275]
    assert 50256 not in tokenizer.encode("a<|endoftext|> b")
    assert tokenizer.vocab_size == 50257


def test_no_training_text_is_read() -> None:
    def texts() -> None:
        raise AssertionError("gpt2 is not trained")

    assert build_tokenizer("gpt2", 0, texts).kind == "gpt2"  # type: ignore[arg-type]


def test_damaged_rank_file_is_refused(tmp_path: Path) -> None:
    content = bytearray((shipped_folder("data") / "gpt2.tiktoken").read_bytes())
    content[1000] ^= 1
    damaged = tmp_path / "gpt2.tiktoken"
    damaged.write_bytes(content)
    with pytest.raises(GptcliError, match=r"gpt2\.tiktoken: .*SHA-256") as caught:
        read_ranks(damaged)
    assert "install gptcli again" in str(caught.value.hint)


def test_missing_rank_file_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match="cannot be read"):
        read_ranks(tmp_path / "gpt2.tiktoken")
