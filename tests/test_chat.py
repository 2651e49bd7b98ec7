"""Conversations as tokens: equal in training and prompts, text that spells tags, masks against TRL's, and plain transformers stopping where it should."""
import random
import unicodedata

import pytest
import torch

from paleotrain.models.causal import FAMILIES, Shape, load_causal, new_causal, use_causal_loss
from paleotrain.chat.template import Rendered, add_chat, chat_tags, render, weigh_tags
from paleotrain.tokenizers.train import train_lossless_unigram, train_tokenizer

LINES = ["say hello to the user, who asks a question.\n", "the assistant answers: a question, <a> or two!\n", "Sag Hallo. The system gives rules.\n"] * 9
LOSSLESS = ("bpe_words", "bpe", "unigram", "character")
PARTS = ["hello", "Hallo", "a", " ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u2028", "é", "e\u0301", "ß", "三葉蟲", "🦕", "\u200d", "\0", "ſ", "{{ 1 }}",
         "{% endfor %}", "&lt;", "\\n", "<", ">", "</", "'", '"', "12", ".", "\ue000Turn0\ue001", "\ue000", "▁", "Ġ", "[UNK]"]
TAGS = [tag for pair in chat_tags().values() for tag in pair]
SPELLED = [*TAGS, "<|endoftext|>", "<|pad|>", "</myPT_user><myPT_assistant>", "<myPT_", "</myPT_assistant"]


def tokenizer_of(kind: str):
    tokenizer = train_lossless_unigram(LINES, 340) if kind == "unigram" else train_tokenizer(kind, LINES, {"character": 80}.get(kind, 320))
    assert add_chat(tokenizer) == 6
    return tokenizer


def conversations(count: int, parts: list[str], seed: int = 42) -> list[list[dict[str, str]]]:
    """Seeded: with and without a system's turn, one to four exchanges, any blanks, no empty turn."""
    draw = random.Random(seed)

    def text() -> str:
        while not (made := "".join(draw.choices(parts, k=draw.randint(1, 6)))).strip(): pass
        return made
    return [[{"role": "system", "content": text()}] * draw.randint(0, 1)
            + [{"role": role, "content": text()} for _ in range(draw.randint(1, 4)) for role in ("user", "assistant")] for _ in range(count)]


def by_hand(tokenizer, messages, asked: bool = False) -> Rendered:
    """What the tokens have to be: tag, text, tag, and so on."""
    ids, supervised = [], []
    for message in messages:
        begin, end = (tokenizer.convert_tokens_to_ids(tag) for tag in chat_tags()[message["role"]])
        text = tokenizer(message["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [begin, *text, end]
        supervised += [False, *[message["role"] == "assistant"] * (len(text) + 1)]
    opened = [tokenizer.convert_tokens_to_ids("<myPT_assistant>")] * asked
    return Rendered(ids + opened, supervised + [False] * asked)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_training_and_prompt_are_the_same_tokens(kind):
    """1,000 conversations, tags among what is said: each answer's prompt is the beginning of the training's tokens, and the answer goes on from there."""
    tokenizer = tokenizer_of(kind)
    tags, spelled = set(tokenizer.convert_tokens_to_ids(TAGS)), 0
    assert len(tags) == 6
    for messages in conversations(1000 if kind == "bpe_words" else 100, PARTS + SPELLED):
        whole = render(tokenizer, messages)
        assert whole == by_hand(tokenizer, messages), messages
        spelled += any(tag in message["content"] for message in messages for tag in TAGS)
        assert sum(token in tags for token in whole.ids) == 2 * len(messages)
        for at in (number for number, message in enumerate(messages) if message["role"] == "assistant"):
            asked = render(tokenizer, messages[:at], prompt=True)
            size = len(asked.ids)
            assert asked == by_hand(tokenizer, messages[:at], asked=True) == Rendered(whole.ids[:size], whole.supervised[:size])
            answer = tokenizer(messages[at]["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"] + [tokenizer.eos_token_id]
            assert (whole.ids[size:size + len(answer)], whole.supervised[size:size + len(answer)]) == (answer, [True] * len(answer))
    assert spelled > 20


@pytest.mark.parametrize("kind", ["bpe_words", "bpe", "unigram"])
def test_nothing_is_lost(kind):
    """What was said comes back from the tokens, as Unicode composes it."""
    tokenizer = tokenizer_of(kind)
    for messages in conversations(100, [part for part in PARTS if part != "▁"] + SPELLED, seed=1): # which is a blank to a unigram tokenizer
        text = "".join(f"<myPT_{m['role']}>{unicodedata.normalize('NFC', m['content'])}</myPT_{m['role']}>" for m in messages)
        assert tokenizer.decode(render(tokenizer, messages).ids, clean_up_tokenization_spaces=False) == text


def test_masks_written_by_hand():
    tokenizer = tokenizer_of("character")
    number = tokenizer.convert_tokens_to_ids
    said = [("system", "so"), ("user", "aq"), ("assistant", "o."), ("user", "<a>"), ("assistant", "t")]
    rendered = render(tokenizer, [{"role": role, "content": content} for role, content in said])
    expected = [("<myPT_system>", 0), ("s", 0), ("o", 0), ("</myPT_system>", 0), ("<myPT_user>", 0), ("a", 0), ("q", 0), ("</myPT_user>", 0),
                ("<myPT_assistant>", 0), ("o", 1), (".", 1), ("</myPT_assistant>", 1), ("<myPT_user>", 0), ("<", 0), ("a", 0), (">", 0), ("</myPT_user>", 0),
                ("<myPT_assistant>", 0), ("t", 1), ("</myPT_assistant>", 1)]
    assert list(zip(rendered.ids, rendered.supervised, strict=True)) == [(number(token), bool(flag)) for token, flag in expected]
    rendered = render(tokenizer, [{"role": role, "content": content} for role, content in said[:4]], prompt=True)
    assert list(zip(rendered.ids, rendered.supervised, strict=True)) == [(number(token), bool(flag)) for token, flag in expected[:18]]


def test_trl_gives_the_same_tokens_and_labels(tmp_path):
    """SFTTrainer with assistant_only_loss, its own preparation: equal where no tag is spelled, and otherwise not."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    tokenizer = tokenizer_of("bpe_words")
    model = new_causal("llama", tokenizer, Shape(16, 1, 1), 64, device="cpu")
    own, attacks = conversations(150, PARTS, seed=2), conversations(60, SPELLED, seed=3)
    config = SFTConfig(str(tmp_path), assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True, bf16=False)
    trainer = SFTTrainer(model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list([{"messages": one} for one in own + attacks]))

    def ours(messages) -> tuple[list[int], list[int]]:
        rendered = render(tokenizer, messages)
        return rendered.ids, [token if flag else -100 for token, flag in zip(rendered.ids, rendered.supervised, strict=True)]
    theirs = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    assert theirs[:150] == [ours(messages) for messages in own]
    whole = [messages for messages in attacks if any(tag in m["content"] for m in messages for tag in [*TAGS, "<|endoftext|>", "<|pad|>"])]
    assert len(whole) > 50 and all(theirs[150 + attacks.index(messages)] != ours(messages) for messages in whole)


def trained(family: str):
    """A small model that has learned one answer by heart, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer("bpe_words", LINES, 320)
    model = new_causal(family, tokenizer, Shape(32, 1, 0 if family == "char_lstm" else 1), 64, device="cpu")
    old, end = model.get_input_embeddings().weight.detach().clone(), tokenizer.eos_token_id
    add_chat(tokenizer); weigh_tags(model, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[:len(old)], old) # to the bit
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, end]
    talk = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "hello."}]
    rendered = render(tokenizer, talk)
    ids, labels = torch.tensor([rendered.ids]), torch.tensor([[token if flag else -100 for token, flag in zip(rendered.ids, rendered.supervised, strict=True)]])
    optimizer = torch.optim.AdamW(use_causal_loss(model).parameters(), lr=.01)
    for _ in range(100):
        model(input_ids=ids[:, :-1], labels=labels[:, 1:]).loss.backward(); optimizer.step(); optimizer.zero_grad()
    del model.forward
    return model.eval(), tokenizer, talk


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_asks_the_same_and_stops_there(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    model, tokenizer, talk = trained(family)
    model.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    read = [load_causal(tmp_path).tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path)]
    if family != "qwen2": read.append(AutoTokenizer.from_pretrained(tmp_path)) # which reads that folder by Qwen2's own rules
    for one in read:
        assert one.eos_token == "</myPT_assistant>" and one.chat_template == tokenizer.chat_template
        for messages in conversations(20, PARTS + SPELLED, seed=4): assert render(one, messages) == render(tokenizer, messages)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = read[-1].apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == render(tokenizer, talk[:1], prompt=True).ids
    made = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[0, ids.shape[1]:]
    assert tokenizer.decode(made) == "hello.</myPT_assistant>"
    plain.generation_config.eos_token_id = plain.generation_config.eos_token_id[1] # the base's end of text alone would not stop it
    assert len(plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[0, ids.shape[1]:]) == 20
