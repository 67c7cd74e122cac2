#!/usr/bin/env python3
"""Makes tokenizer_*.json: two small byte-level BPE tokenizers trained with Hugging Face's `tokenizers` package, and
the ids that it gives for texts chosen to be unpleasant. Needs: pip install tokenizers. Run in this folder."""
import json
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's what they've always done. " * 4,
    "for (int i = 0; i < 1024; i++) { sum += a[i] * b[i]; }\n\n\treturn sum;\n" * 4,
    "Größe, Übermut und Straße. Çok güzel. Zażółć gęślą jaźń. 한국어 텍스트. 日本語のテキスト。 Русский текст. " * 4,
    "1 22 333 4444 55555 3.14159 2,718,281 \U0001f600\U0001f44d\U0001f3fd\n" * 4,
]
TEXTS = [
    "", " ", "  ", "\n", "\r\n", "\t\t\n\n  x", "a", " a", "a ", "  a  b   c    ", "hello world", "Hello  World\n",
    "don't I'll we've THEY'RE it'S 'tis ''s", "x\n\n\ny \n z\n ", "   \n   \n", "trailing   ", "\u00a0\u00a0nbsp\u2003em",
    "1234567890 12 1,234.5e-6 ²³ Ⅷ ٣٤", "for(i=0;i<10;i++){}\n\treturn;\n", "Größe Straße Übermut ŻÓŁĆ",
    "e\u0301 o\u0308 combining", "日本語のテキスト。한국어", "Русский текст, العربية עברית", "\U0001f600\U0001f44d\U0001f3fd\u200d\U0001f469",
    "\u0000nul\u0001\u007f", "\u2028line\u2029para\u0085nel\u000b\u000cff", "\ufeffbom \ufffd", "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|>  <|endoftext|>\n", "<|endoftext", "<|endoftext|><|endoftext|>|>", "<|end<|endoftext|>",
    "the<special>dog <special> <specialer>", "'", "''''", "____ --- *** ...", "a" * 300, " " * 70, "ab" * 150 + "!" * 40,
    "\n" * 33 + "x", "The quick brown fox doesn't mind.", "ſ'ſ K'S", "\U0010ffff\ue000",
]


def build(pre, special, ignore_merges, post, prefix):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(CORPUS, trainer)
    t.add_tokens([AddedToken("<special>", normalized=False), AddedToken("<specialer>", normalized=False)])
    if post:
        t.post_processor = post(t)
    return t


def template(t):
    return processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[
            ("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])])


made = {
    "gpt2": build(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"], False, None, False),
    "prefix": build(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<|endoftext|>"], False, None, True),
    "llama3": build(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ["<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>"], True, template, False),
    "words": build(pre_tokenizers.Sequence([
        pre_tokenizers.Split(" ", "removed"),
        pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}_]+"), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]), ["<|endoftext|>"], False, None, True),
}
cases = {}
for name, t in made.items():
    data = json.loads(t.to_str())
    if name == "gpt2":  # the older way to write merges
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    with open(f"tokenizer_{name}.json", "w") as f:
        json.dump(data, f, ensure_ascii=False, separators=(",", ":"))
    again = Tokenizer.from_file(f"tokenizer_{name}.json")
    cases[name] = [{"text": x, "ids": again.encode(x, add_special_tokens=False).ids} for x in TEXTS]
with open("tokenizer_cases.json", "w") as f:
    json.dump(cases, f, separators=(",", ":"))
