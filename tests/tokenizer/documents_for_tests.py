"""Self-made documents in two languages, for clones without real text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

_ENGLISH_WORDS = """
the of and to in is for that with on are by this be as it from or an at which not can file text
value when if model function language number set list returns string all system data has use used
may will one tokens training checkpoint loss learning rate gradient parameters attention memory
sequence vocabulary document directory command option default argument example following between
because without another different Python's don't it's well-known e.g. i.e. café naïve Ångström
résumé
"""
ENGLISH = _ENGLISH_WORDS.split()
_CHINESE_WORDS = """
的 是 在 和 了 有 我们 可以 使用 文件 系统 函数 返回 字符串 模型 训练 数据 语言 一个 这个 如果 则
选项 命令 参数 默认 目录 设置 程序 用户 损失 学习率 梯度 注意力 内存 序列 词表 文档 例如 以及 或者
不同 因为 没有 中国 历史 春眠不觉晓 处处闻啼鸟 夜来风雨声 花落知多少 明月 故乡 山 水 天地 人民 世界
计算机 网络 安全 更新 软件包 安装
"""
CHINESE = _CHINESE_WORDS.split()
ODD = (
    *("\t", "  ", "    ", "\n\n", "😀", "👩‍👩‍👧", "▁", "\0", "\1", "<|endoftext|>", "<unk>", "<0x41>"),
    *("\ufeff", "\u3000", "é"),
)


def text(language: str, seed: int, words: int) -> str:
    """Some `words` words, one kind of sentence, numbers, now and then something odd."""
    chance = random.Random(f"{language} {seed}")
    parts = []
    for _ in range(words):
        word = chance.choice(ENGLISH if language == "en" else CHINESE)
        roll = chance.random()
        if roll < 0.04:
            word += ("." if language == "en" else "。") + "\n"
        elif roll < 0.10:
            word += ", " if language == "en" else "，"
        elif roll < 0.13:
            word += f" {chance.randrange(3000)} "
        elif roll < 0.14:
            word += chance.choice(ODD)
        elif roll < 0.16:
            word = f"{word.title()}({word}=None)"
        parts.append(word)
    return (" " if language == "en" else "").join(parts)


def rows(count: int, words: int = 60) -> Iterator[dict[str, str]]:
    """`count` documents: two sources of English, one of Chinese, three of four in English."""
    for number in range(count):
        language = "zh" if number % 4 == 3 else "en"
        source = "书" if language == "zh" else ("manual", "web pages")[number % 2]
        yield {"text": text(language, number, words), "source": source, "lang": language}


def write_jsonl(path: Path, documents: Iterator[dict[str, str]] | list[dict[str, str]]) -> Path:
    """Write rows as JSON lines; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in documents:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
