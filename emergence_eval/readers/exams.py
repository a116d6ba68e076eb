"""MMLU and C-Eval: examination questions with four options, one CSV file a subject and split.

Few-shot examples are the five `dev` questions of the same subject; rows are ordered by subject.
"""

from __future__ import annotations

from pathlib import Path

from emergence_eval.readers.files import (
    LETTERS,
    Files,
    Reader,
    Row,
    first_folder,
    letter_index,
    malformed,
    read_csv,
)

CEVAL_HEADER = ["id", "question", "A", "B", "C", "D", "answer"]


def _subject_files(folder: Path, name: str, split: str) -> list[Path]:
    files = sorted((folder / split).glob(f"*_{split}.csv"))
    if not files:
        raise malformed(folder / split, None, f"{name} needs files named <subject>_{split}.csv here, none found")
    return files


def _subject(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _row(path: Path, line: int, cells: list[str], subject: str) -> Row:
    return {
        "subject": subject,
        "question": cells[0].strip(),
        "choices": [cell.strip() for cell in cells[1:5]],
        "labels": list(LETTERS[:4]),
        "gold": letter_index(path, line, cells[5], 4),
    }


def _find_mmlu(data: Path) -> Files:
    remedy = "unpack data.tar of github.com/hendrycks/test there"
    folder = first_folder(data, "MMLU", ("mmlu/data", "mmlu"), remedy)
    return {"test": _subject_files(folder, "MMLU", "test"), "fewshot": _subject_files(folder, "MMLU", "dev")}


def _read_mmlu(files: Files) -> dict[str, list[Row]]:
    def rows(path: Path) -> list[Row]:
        subject = _subject(path).replace("_", " ")
        return [_row(path, line, cells, subject) for line, cells in read_csv(path, columns=6)]

    return {split: [row for path in paths for row in rows(path)] for split, paths in files.items()}


def _find_ceval(data: Path) -> Files:
    remedy = "unpack ceval-exam.zip of github.com/hkust-nlp/ceval there"
    folder = first_folder(data, "C-Eval", ("c-eval", "ceval", "ceval-exam"), remedy)
    return {
        "test": _subject_files(folder, "C-Eval", "val"),
        "fewshot": _subject_files(folder, "C-Eval", "dev"),
    }


def _read_ceval(files: Files) -> dict[str, list[Row]]:
    def rows(path: Path) -> list[Row]:
        records = read_csv(path)
        line, header = next(records, (1, []))
        if header[:7] != CEVAL_HEADER:
            # The test split has no answers: its labels were never released.
            raise malformed(path, line, f"columns {','.join(header)} where {','.join(CEVAL_HEADER)} are needed")
        found = []
        for line, cells in records:
            if len(cells) != len(header):
                raise malformed(path, line, f"{len(cells)} columns where the header has {len(header)}")
            found.append(_row(path, line, cells[1:7], CEVAL_SUBJECTS.get(_subject(path), _subject(path))))
        return found

    return {split: [row for path in paths for row in rows(path)] for split, paths in files.items()}


MMLU = Reader("MMLU", _find_mmlu, _read_mmlu)
CEVAL = Reader("C-Eval", _find_ceval, _read_ceval)

CEVAL_SUBJECTS = {
    "accountant": "注册会计师",
    "advanced_mathematics": "高等数学",
    "art_studies": "艺术学",
    "basic_medicine": "基础医学",
    "business_administration": "工商管理",
    "chinese_language_and_literature": "中国语言文学",
    "civil_servant": "公务员",
    "clinical_medicine": "临床医学",
    "college_chemistry": "大学化学",
    "college_economics": "大学经济学",
    "college_physics": "大学物理",
    "college_programming": "大学编程",
    "computer_architecture": "计算机组成",
    "computer_network": "计算机网络",
    "discrete_mathematics": "离散数学",
    "education_science": "教育学",
    "electrical_engineer": "注册电气工程师",
    "environmental_impact_assessment_engineer": "环境影响评价工程师",
    "fire_engineer": "注册消防工程师",
    "high_school_biology": "高中生物",
    "high_school_chemistry": "高中化学",
    "high_school_chinese": "高中语文",
    "high_school_geography": "高中地理",
    "high_school_history": "高中历史",
    "high_school_mathematics": "高中数学",
    "high_school_physics": "高中物理",
    "high_school_politics": "高中政治",
    "ideological_and_moral_cultivation": "思想道德修养与法律基础",
    "law": "法学",
    "legal_professional": "法律职业资格",
    "logic": "逻辑学",
    "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论",
    "marxism": "马克思主义基本原理",
    "metrology_engineer": "注册计量师",
    "middle_school_biology": "初中生物",
    "middle_school_chemistry": "初中化学",
    "middle_school_geography": "初中地理",
    "middle_school_history": "初中历史",
    "middle_school_mathematics": "初中数学",
    "middle_school_physics": "初中物理",
    "middle_school_politics": "初中政治",
    "modern_chinese_history": "近代史纲要",
    "operating_system": "操作系统",
    "physician": "医师资格",
    "plant_protection": "植物保护",
    "probability_and_statistics": "概率统计",
    "professional_tour_guide": "导游资格",
    "sports_science": "体育学",
    "tax_accountant": "税务师",
    "teacher_qualification": "教师资格",
    "urban_and_rural_planner": "注册城乡规划师",
    "veterinary_medicine": "兽医学",
}
"""The subjects' Chinese names, as in C-Eval's own prompt."""
