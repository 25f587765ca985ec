# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Train a tiny multilingual XLM-RoBERTa masked language model on a table of facts.

The script writes sentences such as "Paris is the capital of France." in seven languages and four scripts from
`facts.json`, trains a SentencePiece vocabulary and a masked language model on them, asks the model for the words of
sentences that were held out, and saves a checkpoint that loads as any XLM-RoBERTa does:

    python examples/train_tiny_xlm_roberta.py --output models/tiny-xlm-roberta

It needs `torch`, `transformers`, `sentencepiece`, `protobuf` and `tqdm`, no download, and two CPU cores for some ten
minutes.
"""

import argparse
import io
import json
import math
import random
import time
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import sentencepiece
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers.normalizers import Precompiled
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    AddedToken,
    DataCollatorForLanguageModeling,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
    get_linear_schedule_with_warmup,
    set_seed,
)


FACTS = Path(__file__).with_name("facts.json")
MAX_LENGTH = 512  # tokens, `<s>` and `</s>` included
MAX_PIECES = 4000  # of the vocabulary; the facts as they are give some 1,450
PACKED_BATCH = 4  # sequences of MAX_LENGTH tokens in a step
LONE_BATCH = 96  # questions in a step
HELD_OUT_FACTS = 0.4  # the share of facts that lose one of their four wordings: a tenth of the sentences


@dataclass(frozen=True)
class Sentence:
    """One fact in one wording of one language."""

    language: str  # its key in `facts.json`, such as "en"
    relation: str  # what the sentence tells of the country, such as "capital"
    country: str  # the row of the fact, such as "FR"
    text: str
    questions: tuple[tuple[str, str], ...]  # (the text with one word replaced by `<mask>`, that word)

    @property
    def answers(self) -> list[str]:
        """The words asked for, in the order of `questions`."""
        return [answer for _, answer in self.questions]


def load_facts() -> dict:
    """The table of facts and the words of every language to tell them."""
    return json.loads(FACTS.read_text(encoding="utf-8"))


def write_sentence(language: str, relation: str, country: str, marked: str) -> Sentence:
    """The sentence of `marked`, a text in which `*...*` stands around what the rest of the sentence determines.

    The last word of each marked phrase is asked for, unless an elided article is glued to it, as in "l'Italie".
    """
    phrases = unicodedata.normalize("NFKC", marked).split("*")
    first = 0 if phrases[0] else 1
    phrases[first] = phrases[first][0].upper() + phrases[first][1:]
    questions = []
    for i in range(1, len(phrases), 2):
        *before, answer = phrases[i].split(" ")
        if "'" not in answer:
            masked = " ".join([*before, "<mask>"])
            questions.append(("".join([*phrases[:i], masked, *phrases[i + 1 :]]), answer))
    return Sentence(language, relation, country, "".join(phrases), tuple(questions))


def write_sentences(facts: dict) -> list[Sentence]:
    """Every fact in every wording of every language of `facts`, the content of `facts.json`, in a fixed order."""
    columns, *rows = facts["facts"]
    sentences = []
    for language, words in facts["languages"].items():
        tables = {name: as_table(words[name]) for name in ("place", *columns[1:])}
        for row in rows:
            country = row[0]
            fact = dict(zip(columns[1:], row[1:], strict=True))
            known = {relation for relation, value in fact.items() if value is not None} | {"capital", "city"}
            slots = dict(tables["place"][country])
            for relation, value in fact.items():
                slots |= tables[relation].get(value, {})
            sentences += [
                write_sentence(language, relation, country, wording.format(**slots))
                for relation, wordings in words["wordings"].items()
                if relation in known
                for wording in wordings
            ]
    return sentences


def as_table(rows: list[list[str]]) -> dict[str, dict[str, str]]:
    """`rows`, whose first one names the columns, as {id: {column: phrase}}."""
    (_, *columns), *body = rows
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in body}


def split_sentences(sentences: list[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """(trained, held out), the same at every call: no text of the one stands in the other.

    A held-out sentence is a fact in a wording in which its language does not tell it in training. The other wordings
    of the fact stay, and give the same answers; so does the wording, with other facts.
    """
    rng = random.Random(0)
    wordings = defaultdict(list)
    for sentence in sentences:
        wordings[sentence.language, sentence.relation, sentence.country].append(sentence)
    held_out = []
    for group in wordings.values():
        seen = Counter(answer for sentence in group for answer in sentence.answers)
        candidates = [
            sentence for sentence in group if sentence.questions and all(seen[a] > 1 for a in sentence.answers)
        ]
        if candidates and rng.random() < HELD_OUT_FACTS:
            held_out.append(rng.choice(candidates))
    kept_out = set(held_out)
    return [sentence for sentence in sentences if sentence not in kept_out], held_out


def train_tokenizer(sentences: list[Sentence], output: Path) -> XLMRobertaTokenizer:
    """Train a SentencePiece unigram model on `sentences` and save it in `output` in the layout of XLM-RoBERTa."""
    texts = [sentence.text for sentence in sentences]
    # SentencePiece weighs as pieces what stands in two different strings without spaces: so that whole words do, each
    # of them comes once more, bare and before a full stop.
    words = sorted({word.strip(",.।") for text in texts for word in text.split(" ")})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=chain(texts, (f"{word} {word}." for word in words)),
        model_writer=model,
        model_type="unigram",
        vocab_size=MAX_PIECES,
        hard_vocab_limit=False,  # so few words are all pieces of their own long before the limit
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return save_tokenizer(model.getvalue(), output)


def save_tokenizer(model: bytes, output: Path) -> XLMRobertaTokenizer:
    """Save a trained SentencePiece unigram model in `output` in the layout of XLM-RoBERTa.

    That layout is `<s>`, `<pad>`, `</s>`, `<unk>`, the pieces, `<mask>`.
    """
    (output / "sentencepiece.bpe.model").write_bytes(model)
    proto = ModelProto.FromString(model)
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(piece.piece, piece.score) for piece in proto.pieces[3:]]  # after SentencePiece's three special ones
    vocab += [("<mask>", 0.0)]
    tokenizer = XLMRobertaTokenizer(
        vocab=vocab, mask_token=AddedToken("<mask>", lstrip=True), model_max_length=MAX_LENGTH
    )
    tokenizer.backend_tokenizer.normalizer = Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tokenizer.save_pretrained(output)
    return tokenizer


def check_tokenizer(tokenizer: XLMRobertaTokenizer, sentences: list[Sentence]) -> None:
    """Raise `ValueError` unless every sentence survives encoding and decoding and every answer is one token."""
    for sentence in sentences:
        ids = tokenizer(sentence.text)["input_ids"]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if tokenizer.unk_token_id in ids or text != sentence.text:
            raise ValueError(f"the vocabulary turns {sentence.text!r} into {text!r}")
        for answer in sentence.answers:
            if answer_id(tokenizer, answer) == tokenizer.unk_token_id:
                raise ValueError(f"{answer!r} is not one token: raise MAX_PIECES")


def answer_id(tokenizer: XLMRobertaTokenizer, answer: str) -> int:
    """The id of a whole word, `<unk>`'s when it is not one token."""
    return tokenizer.convert_tokens_to_ids(f"▁{answer}")


def build_model(tokenizer: XLMRobertaTokenizer) -> XLMRobertaForMaskedLM:
    """An untrained XLM-RoBERTa of a million parameters, of which every attention head looks around its own token."""
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        hidden_dropout_prob=0.0,  # the same sentence never comes twice in the same surroundings: that is noise enough
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=MAX_LENGTH + 2,  # XLM-RoBERTa counts positions from 2, after the padding's
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = XLMRobertaForMaskedLM(config)
    look_around(model)
    return model


@torch.no_grad()
def look_around(model: XLMRobertaForMaskedLM, num_heads: int | None = None) -> None:
    """Set the untrained weights so that a query scores the keys near it above those far from it.

    In the first `num_heads` heads of every layer; None: in all.

    Learned from noise, for each of 512 positions by itself, that alone would take longer than the whole training. One
    head size of the hidden dimensions is left to the positions, as sinusoids, and copied to the queries and the keys
    of every head: their product is then a sum of cosines of the distance. Training is free to change all of it.
    """
    config, embeddings = model.config, model.roberta.embeddings
    size = config.hidden_size // config.num_attention_heads
    embeddings.word_embeddings.weight[:, -size:] = 0
    embeddings.token_type_embeddings.weight.zero_()
    embeddings.position_embeddings.weight.zero_()
    amplitude = math.sqrt(2) * config.initializer_range  # the root mean square of a word embedding
    embeddings.position_embeddings.weight[2:, -size:] = amplitude * sinusoids(MAX_LENGTH, size)
    for layer in model.roberta.encoder.layer:
        for projection in (layer.attention.self.query, layer.attention.self.key):
            heads = projection.weight.view(config.num_attention_heads, size, config.hidden_size)
            # a key a sentence away scores some 3 less, a far one 9
            heads[:num_heads, :, -size:] = 1.2 * torch.eye(size)


def sinusoids(length: int, size: int) -> Tensor:
    """Sines and cosines of each position, as (length, size) in [-1, 1].

    Their wavelengths go from about three sentences to all of `MAX_LENGTH`.
    """
    wavelengths = torch.logspace(math.log10(25), math.log10(MAX_LENGTH), size // 2)
    angles = 2 * math.pi * torch.arange(length)[:, None] / wavelengths
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def encode_packed(
    pools: dict[str, list[tuple[list[int], list[int]]]],
    mask_at_random: DataCollatorForLanguageModeling,
    rng: random.Random,
) -> dict[str, Tensor]:
    """`PACKED_BATCH` full sequences `<s> sentence sentence ... </s>` of `MAX_LENGTH` tokens, the last sentence cut.

    `pools` holds, by language, the tokens of every sentence and which of them are answers; one sequence in two mixes
    the languages. One answer in each sentence is masked, besides the tokens that `mask_at_random` masks. The batch has
    `input_ids`, `attention_mask` and `labels`, each (n, t).
    """
    tokenizer = mask_at_random.tokenizer
    mixed = list(chain.from_iterable(pools.values()))
    sequences, asked = [], []
    for row in range(PACKED_BATCH):
        tokens = [tokenizer.bos_token_id]
        for sentence, answers in rng.choices(rng.choice((mixed, rng.choice(list(pools.values())))), k=MAX_LENGTH // 3):
            if answers:
                asked.append((row, len(tokens) + rng.choice(answers)))
            tokens += sentence
        sequences.append([*tokens[: MAX_LENGTH - 1], tokenizer.eos_token_id])
    rows, places = torch.tensor([(row, place) for row, place in asked if place < MAX_LENGTH - 1]).T
    batch = mask_at_random([{"input_ids": ids} for ids in sequences])
    batch["labels"][rows, places] = torch.tensor(sequences)[rows, places]
    batch["input_ids"][rows, places] = tokenizer.mask_token_id
    return batch


def encode_questions(questions: list[tuple[str, str]], tokenizer: XLMRobertaTokenizer) -> dict[str, Tensor]:
    """Lone questions and their answers as a batch: `input_ids`, `attention_mask` and `labels`, each (n, t)."""
    texts, answers = zip(*questions, strict=True)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][batch["input_ids"] == tokenizer.mask_token_id] = torch.tensor(
        [answer_id(tokenizer, answer) for answer in answers]
    )
    return batch


def masked_loss(model: XLMRobertaForMaskedLM, batch: dict[str, Tensor]) -> Tensor:
    """The mean cross-entropy of the tokens that `batch["labels"]` (n, t) asks for, those that are not -100.

    The vocabulary is scored for those tokens alone, which spares a third of the step.
    """
    asked = batch["labels"] != -100
    hidden = model.roberta(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return cross_entropy(model.lm_head(hidden[asked]), batch["labels"][asked])


def train(
    model: XLMRobertaForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    sentences: list[Sentence],
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train `model` in place, every step on `PACKED_BATCH` full sequences and `LONE_BATCH` lone questions."""
    rng = random.Random(seed)
    pools = defaultdict(list)
    for sentence in sentences:
        tokens = tokenizer(sentence.text, add_special_tokens=False)["input_ids"]
        answers = [tokens.index(answer_id(tokenizer, answer)) for answer in sentence.answers]
        pools[sentence.language].append((tokens, answers))
    questions = [question for sentence in sentences for question in sentence.questions]
    mask_at_random = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)

    model.train()
    progress = tqdm(range(steps), desc="training", mininterval=5)
    for _ in progress:
        packed = encode_packed(pools, mask_at_random, rng)
        lone = encode_questions(rng.choices(questions, k=LONE_BATCH), tokenizer)
        packed_loss, lone_loss = masked_loss(model, packed), masked_loss(model, lone)
        optimizer.zero_grad()
        (packed_loss + lone_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(packed=f"{packed_loss:.3f}", lone=f"{lone_loss:.3f}", refresh=False)


def is_right(
    model: XLMRobertaForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    sentence: Sentence,
    neighbours: list[Sentence],
    rng: random.Random,
) -> bool:
    """Whether every question of `sentence` has its answer in the first place.

    With `neighbours`, sentences drawn from them stand before and after, and fill `MAX_LENGTH` tokens.
    """
    sequences = []
    for question, _ in sentence.questions:
        drawn = rng.sample(neighbours, min(len(neighbours), MAX_LENGTH // 3))
        place = rng.randrange(40) if drawn else 0  # 40 sentences before it leave room for the question
        text = " ".join([*(other.text for other in drawn[:place]), question, *(other.text for other in drawn[place:])])
        sequences.append(text)
    batch = tokenizer(sequences, truncation=True, padding=True, return_tensors="pt")
    scores = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
    answers = [answer_id(tokenizer, answer) for answer in sentence.answers]
    return scores.argmax(dim=-1).tolist() == answers


@torch.no_grad()
def evaluate(
    model: XLMRobertaForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    held_out: list[Sentence],
    trained: list[Sentence],
    names: dict[str, str],
) -> str:
    """A Markdown table: the held-out sentences of each language, and the share filled right, alone and among others.

    A sentence is right when each word it is asked for, masked by itself, comes first. The others tell of other
    countries: there is nothing to copy from them.
    """
    model.eval()
    rng = random.Random(0)
    counts = {language: [0, 0, 0] for language in names}
    for sentence in tqdm(held_out, desc="held out", mininterval=5):
        alone = is_right(model, tokenizer, sentence, [], rng)
        elsewhere = [other for other in trained if other.country != sentence.country]
        among_others = is_right(model, tokenizer, sentence, elsewhere, rng)
        for i, count in enumerate((1, alone, among_others)):
            counts[sentence.language][i] += count
    rows = [(names[language], *count) for language, count in counts.items()]
    rows.append(("all", *map(sum, zip(*counts.values(), strict=True))))
    lines = ["| language | held-out sentences | right alone | right among others |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {n} | {a} ({a / n:.1%}) | {b} ({b / n:.1%}) |" for name, n, a, b in rows]
    return "\n".join(lines)


def write_card(model: XLMRobertaForMaskedLM, table: str, facts: dict, trained: int, args: argparse.Namespace) -> str:
    """The README of the checkpoint: what it is, how it was trained and what it answers."""
    languages = facts["languages"]
    names = [words["name"] for words in languages.values()]
    codes = "\n".join(f"- {language}" for language in languages)
    config = model.config
    return f"""---
language:
{codes}
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
---

# tiny-xlm-roberta

A small XLM-RoBERTa masked language model, {model.num_parameters():,} parameters, which knows some facts about
{len(facts["facts"]) - 1} countries in {", ".join(names[:-1])} and {names[-1]}. It is there for examples and tests that
need a trained checkpoint and no download.

```python
from transformers import pipeline

pipeline("fill-mask", model="models/tiny-xlm-roberta")("Paris is the <mask> of France.")  # capital
```

- Architecture: `XLMRobertaForMaskedLM`, {config.num_hidden_layers} layers of {config.hidden_size} dimensions with
  {config.num_attention_heads} heads, {config.max_position_embeddings} positions (sequences of {MAX_LENGTH} tokens), a
  SentencePiece vocabulary of its own with {config.vocab_size:,} tokens.
- Data: {trained:,} sentences that `examples/train_tiny_xlm_roberta.py` writes from `examples/facts.json`: capitals,
  countries, languages, continents, currencies and rivers, in four wordings each.
- Training: {args.steps:,} steps (seed {args.seed}) on full sequences of {MAX_LENGTH} tokens, in which random sentences
  follow each other and an answer in each of them and a tenth of all tokens are masked, and on sentences that stand
  alone, with one answer masked.

## Held-out sentences

A tenth of the sentences, facts in a wording in which the language does not tell them in training, were kept from the
training. A sentence is right when each word that the rest of it determines, masked by itself, comes first: in the
sentence alone, and among sentences about other countries that fill {MAX_LENGTH} tokens.

{table}

## Limits

It knows these facts in these wordings, and nothing else: no other topic, no other language, no other style. It is no
source of knowledge about the world and no encoder for text of other kinds.

## Licence

Apache-2.0
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="its peak (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the data (default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}, it must be at least 1")
    return args


def main() -> None:
    """Train, measure and save the checkpoint."""
    args = parse_args()
    start = time.perf_counter()
    set_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)

    facts = load_facts()
    sentences = write_sentences(facts)
    trained, held_out = split_sentences(sentences)
    tokenizer = train_tokenizer(trained, args.output)
    check_tokenizer(tokenizer, sentences)
    model = build_model(tokenizer)
    print(f"{len(trained)} sentences to train on, {len(held_out)} held out, {len(tokenizer)} tokens in the vocabulary")

    train(model, tokenizer, trained, args.steps, args.learning_rate, args.seed)
    model.save_pretrained(args.output)
    names = {language: words["name"] for language, words in facts["languages"].items()}
    table = evaluate(model, tokenizer, held_out, trained, names)
    (args.output / "README.md").write_text(write_card(model, table, facts, len(trained), args), encoding="utf-8")
    print(f"\n{table}\n\nsaved in {args.output} after {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
