"""What the policy wrote is what stands after its prompt: spaces, split characters, tidied blanks, stop tokens."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfrlhf.data.written import content, written

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
WORDS = ["the", "director", "has", "made", "a", "film", ".", "n't", "is", "good"]


def sentencepiece_like(legacy: bool = False) -> Any:
    """Words carry their space; the decoder drops the one at the beginning of a text.

    legacy: the space is put before every piece of text between special tokens, also where one stands there already.
    """
    vocabulary = [*SPECIAL.values(), "<|assistant|>", "▁", *(f"▁{w}" for w in WORDS), *WORDS]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens([*SPECIAL.values(), "<|assistant|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def wordpiece() -> Any:
    vocabulary = [*SPECIAL.values(), *WORDS, "##s", "##d"]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def ids(tokenizer: Any, *tokens: str) -> list[int]:
    found = tokenizer.convert_tokens_to_ids(list(tokens))
    assert tokenizer.unk_token_id not in found
    return found


def wrote(tokenizer: Any, prompt: list[int], completion: list[int]) -> str:
    return written(tokenizer, [prompt], [completion])[0]


def test_a_first_word_keeps_its_space() -> None:
    tokenizer = sentencepiece_like()
    prompt = ids(tokenizer, "▁the", "▁director", "▁has")
    assert wrote(tokenizer, prompt, ids(tokenizer, "▁made", "▁a", "▁film")) == " made a film"
    assert wrote(tokenizer, prompt, ids(tokenizer, "n't", "▁made")) == "n't made"
    assert wrote(tokenizer, prompt, []) == ""


def test_many_rows_and_equal_prompts_at_once() -> None:
    tokenizer = sentencepiece_like()
    prompt, other = ids(tokenizer, "▁the"), ids(tokenizer, "▁a", "▁film")
    completions = [ids(tokenizer, "▁film"), ids(tokenizer, "▁is", "▁good"), ids(tokenizer, "▁director")]
    assert written(tokenizer, [prompt, other, prompt], completions) == [" film", " is good", " director"]
    assert written(tokenizer, [], []) == []


def test_special_tokens_are_no_text() -> None:
    tokenizer = sentencepiece_like()
    prompt = ids(tokenizer, "<s>", "▁the")
    assert wrote(tokenizer, prompt, ids(tokenizer, "▁film", "<pad>", "</s>")) == " film"


def test_pieces_of_words_and_words_are_told_apart() -> None:
    tokenizer = wordpiece()
    prompt = ids(tokenizer, "the", "film")
    assert wrote(tokenizer, prompt, ids(tokenizer, "##s", "is", "good")) == "s is good"
    assert wrote(tokenizer, prompt, ids(tokenizer, "is", "good")) == " is good"


@pytest.mark.parametrize("tidy", [True, False])
def test_blanks_that_decoding_tidies_away(tidy: bool) -> None:
    """The definition holds with the tokenizer's own way of decoding, whatever that is."""
    tokenizer = wordpiece()
    tokenizer.clean_up_tokenization_spaces = tidy
    prompt = ids(tokenizer, "the", "film")
    assert wrote(tokenizer, prompt, ids(tokenizer, ".", "a")) == (". a" if tidy else " . a")
    assert wrote(tokenizer, ids(tokenizer, "the", "film", "."), ids(tokenizer, "a", ".")) == (" a." if tidy else " a .")


def test_a_character_of_several_tokens(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(bos=None)
    euro = tokenizer("€", add_special_tokens=False).input_ids
    assert len(euro) == 3
    prompt = tokenizer("the", add_special_tokens=False).input_ids
    assert wrote(tokenizer, prompt, [*euro, *prompt]) == "€the"
    # Half of it in the prompt: the character is the completion's, which makes it whole.
    assert wrote(tokenizer, [*prompt, euro[0]], [*euro[1:], *prompt]) == "€the"
    # Cut off within it.
    assert wrote(tokenizer, prompt, [*prompt, *euro[:2]]) == "the\ufffd"


@pytest.mark.parametrize("legacy", [True, False])
def test_in_a_chat_a_space_of_the_tokenizers_is_no_part_of_the_message(legacy: bool) -> None:
    """After a special token it begins a text anew, with a space that the template's text does not have."""
    tokenizer = sentencepiece_like(legacy)
    if not legacy:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.backend_tokenizer.model = models.WordLevel(
        tokenizer.backend_tokenizer.get_vocab() | {"▁a": len(tokenizer) + 5}, unk_token="<unk>"
    )
    text = "the film<|assistant|>"
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    answer = tokenizer(text + "a film", add_special_tokens=False).input_ids[len(prompt) :]
    assert tokenizer.convert_ids_to_tokens(answer) == ["▁a", "▁film"]
    assert written(tokenizer, [prompt], [answer], [text]) == ["a film"]


def test_in_a_chat_a_space_that_the_policy_wrote_stays(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(chat=True, bos=None)
    text = "<|im_start|>assistant\n"
    prompt = tokenizer(text).input_ids
    assert written(tokenizer, [prompt], [tokenizer(" film").input_ids], [text]) == [" film"]


def test_a_stop_token_is_no_content_unless_it_is_text(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(chat=True)
    word, blank, dot = (tokenizer(t, add_special_tokens=False).input_ids[0] for t in ("the", "\n", "."))
    eos, end, start = (tokenizer.convert_tokens_to_ids(t) for t in ("<eos>", "<|im_end|>", "<|im_start|>"))
    rows = [[word, eos], [word, end], [word, blank], [word, dot], [word, start], [eos], []]
    ended = [True, True, True, True, False, True, False]
    assert content(tokenizer, rows, ended) == [[word], [word], [word], [word, dot], [word, start], [], []]
