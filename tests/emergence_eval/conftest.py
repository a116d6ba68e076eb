"""Small benchmark files in the official formats with the traps of the real ones, and a tiny model."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")

RACE_ARTICLE = "Tom has a red ball.\nHe plays with it every day."


def _json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows(rows)
    return file.getvalue()


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def _hellaswag(i):
    return {
        "ind": i,
        "activity_label": "Pole vault",
        "ctx_a": "A woman runs [step] fast.",
        "ctx_b": "she",
        "ctx": "A woman runs [step] fast. she",
        "label": i % 4,
        "endings": [f"jumps [title] over {i}.", "sits down.", "eats\u2028a cake.", "sleeps."],
    }


def _race(number, questions):
    return json.dumps(
        {
            "article": f"{RACE_ARTICLE} {number}",
            "questions": [f"Tom has a   _   in {number}.", "What does Tom do?"][:questions],
            "options": [["cat", "ball", "dog", "hat"]] * questions,
            "answers": ["B", "A"][:questions],
            "id": f"high{number}.txt",
        }
    )


def _c3(kind, number, choices):
    question = {"question": f"他们在谈论什么{number}?", "choice": choices, "answer": choices[-1]}
    return [[f"男：听说你们公司要派你去南方工作?{kind}", "女：是呀。"], [question, question], f"{kind}-{number}"]


def _cluewsc(i):
    return {
        "target": {"span1_text": "伤口", "span1_index": 3, "span2_text": "它们", "span2_index": 10},
        "idx": i,
        "label": ["true", "false"][i % 2],
        "text": "裂开的伤口涂满尘土，它们很疼。",
    }


def _nlpcc(rows, end):
    lines = []
    for identifier, question, triple, answer in rows:
        lines.append(f"<question id={identifier}>\t{question}")
        lines += [f"<triple id={identifier}>\t{triple}"] if triple else []
        lines += [f"<answer id={identifier}>\t{answer}", "=" * 50]
    return end.join([*lines, ""])


def _clozet(i):
    story = ["<mask>猫饿了。", "猫饿了。<mask>它吃了鱼。", "猫饿了，它叫。<mask>"][i % 3]
    return {"story": story, "plot0": "没有鱼。", "plot1": f"有{i}条鱼。", "label": str(i % 2)}


def _chinese(root):
    _write(root / "clozet/train.jsonl", _json_lines(_clozet(i) for i in range(3)))
    _write(root / "clozet/valid.jsonl", _json_lines(_clozet(i) for i in range(3, 5)))
    rows = ['珍妮说 "好"，她有 16 颗蛋。还有几颗？\t18', "他买了房子。\t70,000", "多少？\t-3.5"]
    _write(root / "gsm8k-chinese/mgsm_zh.tsv", "\n".join(rows) + "\n")
    exemplars = {
        str(i): {"q": f"问题：罗杰有 {i} 个球。", "a": f"逐步解答：{i} + {i} = {2 * i}。答案是 {2 * i},000。"}
        for i in range(1, 11)
    }
    content = {"MGSM_EXEMPLARS": {"zh": exemplars}, "EXEMPLAR_NUMBER_ANSWERS": []}
    _write(root / "gsm8k-chinese/mgsm_exemplars_zh.json", json.dumps(content, ensure_ascii=False))


def _bigbench(root):
    def task(folder, examples):
        _write(root / folder / "task.json", json.dumps({"examples": examples}, ensure_ascii=False))

    words = [("hte", "the"), ("nad", "and"), ("ihst", ["this", "hits"]), ("tihw", "with")]
    sentence = "The word {} is a scrambled version of the English word "
    task("word_unscrambling", [{"input": sentence.format(word), "target": target} for word, target in words])
    for operation in ("three_digit_addition", "three_digit_subtraction", "two_digit_multiplication"):
        for variant in ("control", "plus_one"):
            examples = [{"input": "a symbol\n1 - 2 -> -1\n3 - 9 ->", "target": "-6"}]
            task(f"modified_arithmetic/{operation}_{variant}", examples)
    task(
        "international_phonetic_alphabet_transliterate",
        [
            {"input": "IPA: ju doʊnt.", "target": "English: You don't."},
            {"input": "English: I like it.\nIPA:", "target": " aɪ laɪk ɪt."},
            {"input": "IPA: goʊ.\nEnglish:", "target": " Go. "},
        ],
    )


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory):
    """A folder with every benchmark, a handful of rows each."""
    root = tmp_path_factory.mktemp("benchmarks")
    _write(root / "hellaswag/hellaswag_val.jsonl", _json_lines(_hellaswag(i) for i in range(5)))
    sentence = "Sarah was better than Maria so _ always won."
    winogrande = [
        {"qID": str(i), "sentence": sentence, "option1": "Sarah", "option2": "Maria", "answer": str(1 + i % 2)}
        for i in range(4)
    ]
    _write(root / "winogrande/dev.jsonl", _json_lines(winogrande))
    _write(root / "cluewsc2020/train.json", _json_lines(_cluewsc(i) for i in range(3)))
    _write(root / "cluewsc2020/dev.json", _json_lines(_cluewsc(i) for i in range(2)))
    for level, number in (("middle", 1), ("high", 10001)):
        _write(root / f"race/RACE/test/{level}/{number}.txt", _race(number, 2))
        for example in (number + 7, number + 9, number + 10):
            _write(root / f"race/RACE/train/{level}/{example}.txt", _race(example, 1))
    for kind, choices in (("d", ["旅行", "工作"]), ("m", ["旅行", "环境", "工作", "家庭"])):
        documents = [_c3(kind, number, choices) for number in range(2)]
        _write(root / f"c3/c3-{kind}-dev.json", json.dumps(documents, ensure_ascii=False))
        _write(root / f"c3/c3-{kind}-train.first200.json", json.dumps(documents * 3, ensure_ascii=False))
    for subject in ("abstract_algebra", "world_religions"):
        rows = [[f'{subject}: "None",\nor\x85what {i}?', "None", "1", "a,b", "NA", "ABCD"[i % 4]] for i in range(6)]
        _write(root / f"mmlu/data/dev/{subject}_dev.csv", _csv(rows[:5]))
        _write(root / f"mmlu/data/test/{subject}_test.csv", _csv(rows))
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    for subject in ("law", "logic"):
        rows = [[str(i), f"{subject}要添加几个0____{i}", "1", "2", "3", "4", "ABCD"[i % 4]] for i in range(5)]
        examples = [[*row, "解释"] for row in rows]
        _write(root / f"c-eval/val/{subject}_val.csv", _csv([header, *rows]))
        _write(root / f"c-eval/dev/{subject}_dev.csv", _csv([[*header, "explanation"], *examples], lineterminator="\n"))
    trivia = [(f'Who wrote "Book {i}"?', str([f'The "Author" {i}', "Bob's"])) for i in range(4)]
    single = [(f"Who sang song {i}?", str([f"Singer {i}"])) for i in range(6)]
    _write(root / "triviaqa/topics.dpr.trivia.test.txt", _csv(trivia, delimiter="\t"))
    _write(root / "triviaqa/topics.dpr.trivia.dev.txt", _csv(trivia[:1] + single, delimiter="\t"))
    book = "机械设计基础 ||| 作者 ||| 杨可桢"
    _write(root / "nlpcc-kbqa/nlpcc2016.kbqa.test", _nlpcc([(1, "作者是谁？", book, "杨可桢")] * 2, "\r\n"))
    eighteen = [
        (1, "多高？", "闵勋基 ||| 身高 ||| 176厘米", "176厘米 ||| 176CM"),
        (33, "生在哪里？", "拉伊科维奇 ||| 出生地 ||| 贝尔格莱德", "拉伊科维奇 ||| 出生地 ||| 贝尔格莱德"),
        (40, "何时？", "", "2013年"),
    ]
    _write(root / "nlpcc-kbqa/nlpcc2018.kbqa.test", _nlpcc(eighteen, "\r\n"))
    _write(
        root / "nlpcc-kbqa/nlpcc-iccpol-2016.kbqa.training-data.first500",
        _nlpcc([(i, f"第{i}本书的作者是谁？", book, "杨可桢") for i in range(6)], "\n"),
    )
    gsm8k = [
        {"question": f"{i} plus {i}?", "answer": f"It is {i}+{i} = <<{i}+{i}={2 * i}>>{2 * i}.\n#### 1,{200 + i}"}
        for i in range(9)
    ]
    _write(root / "gsm8k/test.jsonl", _json_lines(gsm8k[:4]))
    _write(root / "gsm8k/train.first500.jsonl", _json_lines(gsm8k))
    _chinese(root)
    _bigbench(root / "bigbench")
    return root


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory):
    """A random Glm of two layers with a byte-level tokenizer and a context of 256, as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<|endoftext|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=special[0], eos_token=special[1], pad_token=special[2]
    )
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=len(special + alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        attention_bias=False,
        partial_rotary_factor=0.5,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=2,
        bos_token_id=None,
    )
    directory = tmp_path_factory.mktemp("hf")
    GlmForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
