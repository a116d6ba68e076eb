"""The Chinese-like language: Chinese sentences around nouns of one character, whatever it means in Chinese."""

from __future__ import annotations

from random import Random

from recipes.microworld.phrases import Coreference, Phrases, Relation

_NOUNS = (
    "山火木金土日月星云风雨花草树石河海田林竹兰松桃杏梨米麦豆瓜茶酒盐糖牛马羊鸡鱼鸟虎龙车船桥灯床刀笔书琴棋鼓钟布帽鞋冰雪雷电霜露泉井湖溪岛沙洞谷"
    "峰岭崖坡沟塘柳梅桂荷菊莲藤叶根枝枣橘柿葱姜蒜油醋饼糕粥汤饭肉蛋奶蜜鹅鸭兔狗猫猪鼠猴狼熊鹿象狮豹蛇龟虾蟹蜂蝶蚕燕鹤鹰针线剪锤锯斧犁锄镜梳伞扇壶"
    "碗盘杯瓶罐桶篮筐袋柜桌椅窗墙瓦砖塔寺亭院村街店铺窑炉锅铲勺筷箭弓剑盾旗鞍轮帆桨锚网绳链铃笛箫筝鼎玉珠银铜铁锡丝棉麻皮毛纸墨砚印画诗歌舞"
)
"""Characters that no sentence and no name below holds."""
_FAMILY = "王张刘陈杨赵黄周吴徐孙胡朱高郭何"
_GIVEN = "明芳丽强军敏静磊洋勇艳杰娟"
_SHORT_NAMES = 10


def _words(random: Random, count: int) -> list[str]:
    return random.sample(_NOUNS, count)


def _names(random: Random, count: int) -> tuple[list[str], list[str]]:
    full = [family + given for family in _FAMILY for given in _GIVEN]
    return random.sample(full, count), ["小" + given for given in _GIVEN[:_SHORT_NAMES]]


CHINESE = Phrases(
    code="zh",
    make_words=_words,
    make_names=_names,
    categories={
        "city": "城市",
        "job": "工作",
        "animal": "动物",
        "fruit": "水果",
        "game": "游戏",
        "tool": "工具",
        "dish": "菜",
        "box": "箱子",
    },
    relations=(
        Relation("city", ("{person}住在{value}。", "{value}是{person}的家。"), "{person}住在哪里？"),
        Relation("job", ("{person}做{value}。", "{person}的工作是{value}。"), "{person}做什么工作？"),
        Relation("animal", ("{person}养{value}。", "{person}有一只{value}。"), "{person}养什么动物？"),
        Relation("fruit", ("{person}爱吃{value}。", "{person}吃{value}。"), "{person}吃什么水果？"),
        Relation("game", ("{person}玩{value}。", "{person}常玩{value}。"), "{person}玩什么游戏？"),
    ),
    space="",
    kind_statements=("{member}是一种{category}。", "有一种{category}是{member}。"),
    kind_questions=("{member}是什么？", "{member}属于哪一类？", "哪一类有{member}？", "什么叫{member}？"),
    subjects=("事物", "人物", "数字"),
    sum_questions=("计算 {terms}，得多少？", "请问 {terms} 是多少？", "哪个数是 {terms}？", "多少等于 {terms}？"),
    activity="{activity}：{person}去{place}。{person}拿{tool}。",
    activity_product="{person}做出{product}。",
    activity_ends=("{person}很高兴。", "{person}回家了。", "{person}睡了。"),
    put="{person}把{thing}放进{place}。",
    where_question="{thing}在哪里？",
    coreferences=(
        Coreference("{first}放不进{second}，因为", "太大。", "太小。"),
        Coreference("{first}压坏了{second}，因为", "太重。", "太弱。"),
        Coreference("{first}追不上{second}，因为", "太慢。", "太快。"),
    ),
    pronoun="它",
    pronoun_question="上文中的“{pronoun}”指的是“{noun}”吗？",
    no_yes=("否", "是"),
    problem_start="{person}有 {a} 个{thing}。",
    problem_more="{other}给{person} {b} 个{thing}。",
    problem_less="{person}丢了 {c} 个{thing}。",
    problem_question="{person}有几个{thing}？",
    problem_answer="答案是 {answer}。",
    exam_header="以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。",
    question_frame="问题：{question}\n答案：",
    choice_frame="{question}\n{options}\n答案：",
    passage_frame="{passage}\n问题：{question}\n{options}\n答案：",
    problem_frame="问题：{question}\n逐步解答：",
    answer_space="",
    list_line="{category} = [{members}]",
)
