import gzip

from open_clip.tokenizer import SimpleTokenizer

from clipself_d2.clip.bpe import learn_merges, write_merges

WORDS = ["dog", "dogs", "teddy", "bear", "a", "bookshelf"]


def test_every_learnt_word_is_one_token_and_others_are_more(tmp_path):
    size = write_merges(tmp_path / "merges.txt.gz", learn_merges(WORDS))
    tokenizer = SimpleTokenizer(bpe_path=str(tmp_path / "merges.txt.gz"), context_length=8)
    assert tokenizer.vocab_size == size
    numbers = [tokenizer.encode(word) for word in WORDS]
    assert all(len(number) == 1 for number in numbers)
    assert len({number[0] for number in numbers}) == len(WORDS)
    assert len(tokenizer.encode("wombat")) > 1
    assert tokenizer.decode(tokenizer.encode("teddy bear")) == "teddy bear "


def test_frequent_pairs_are_merged_first_and_ties_in_order_of_letters():
    assert learn_merges(["ab", "cab", "dab", "xy"]) == [
        ("a", "b</w>"),
        ("c", "ab</w>"),
        ("d", "ab</w>"),
        ("x", "y</w>"),
    ]


def test_repeated_pair_is_merged_wherever_it_stands():
    assert learn_merges(["ababc"]) == [("a", "b"), ("ab", "ab"), ("abab", "c</w>")]


def test_words_of_one_letter_need_no_merge():
    assert learn_merges(["a", "a", "b"]) == []


def test_order_and_repetition_of_words_change_nothing():
    assert learn_merges(WORDS) == learn_merges([*reversed(WORDS), "dog"])


def test_same_merges_give_the_same_bytes(tmp_path):
    merges = learn_merges(WORDS)
    write_merges(tmp_path / "a.gz", merges)
    write_merges(tmp_path / "b.gz", merges)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()).startswith(b"#version: 0.2\n")
